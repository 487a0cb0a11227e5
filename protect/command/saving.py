"""A result on the disk: what was written is read back and measured before it takes its place."""

from pathlib import Path

from imaging.io import Picture, is_lossless, write
from protect.verify.measures import Measurement, measure


class VerificationError(ValueError):
    """The file that was read back is not what was written."""


def save(
    original: Picture, protected: Picture, path: Path, *, eps: float, overwrite: bool = False
) -> tuple[Measurement, list[str]]:
    """Write a protected picture, read it back and measure it; a file that fails the test replaces nothing.

    Args:
        original: the picture before protection.
        protected: what to write.
        path: where to; folders on the way are made.
        eps: the bound that a lossless file has to keep.
        overwrite: replace a file that exists.

    Returns:
        The measurement of the decoded file, and sentences about what the format changed.

    Raises:
        imaging.PictureError: it cannot be written.
        VerificationError: a lossless file breaks the bound.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found: list[Measurement] = []

    def check(decoded: Picture) -> None:
        found.append(measure(original, decoded, intended=protected))
        if is_lossless(path) and _exceeds(found[0], eps):
            raise VerificationError(
                f"the written file differs by {found[0].linf:g}/255 from its input; it was not kept"
            )

    notes = list(write(protected, path, overwrite=overwrite, check=check))
    (measured,) = found
    if _exceeds(measured, eps):
        notes.append(
            f"{path.suffix[1:].upper()} changes pixels by itself, here by up to {measured.linf:.3g} of 255"
        )
    return measured, notes


def _exceeds(measured: Measurement, eps: float) -> bool:
    # The decoded values are whole levels, so a thousandth is far more than float error and far less than
    # a level.
    return measured.linf > eps * 255 + 1e-3
