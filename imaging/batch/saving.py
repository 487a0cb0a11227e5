"""Room for a result is made sure of before the work that makes it, and for what lies beside results, too."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from imaging.batch.discover import Plan, PlanError
from imaging.batch.mark import bears, marked
from imaging.io import write
from imaging.picture import Picture
from imaging.sheet import Sheet

Known = Callable[[Path], bool]
"""Says of a file whether it is of the kind that would be written in its place."""

_SHEET = "vernis:contact-sheet"


def check_writable(path: Path, *, at_least: int = 0) -> None:
    """Make sure, before any work, that a file can be made at `path` and that there is some room for it.

    Raises OSError with a sentence.
    """
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if path.is_dir():
        raise IsADirectoryError(f"the output {path} is a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise PermissionError(f"cannot write into {folder} ({error.strerror})") from error
    if free < at_least:
        raise OSError(
            f"the disk of {folder} is full: {free / 1e6:.1f} MB free, {at_least / 1e6:.1f} MB or more needed"
        )


def check_extras(
    plan: Plan,
    extras: Mapping[str, tuple[str | None, Known]],
    *,
    others: Iterable[str | None] = (),
    overwrite: bool = False,
) -> None:
    """Make sure that files beside the results can be written and replace nothing but their like.

    Args:
        plan: inputs and results.
        extras: by flag, a path and what tells whether a file there is of an earlier run.
        others: what is read beside the inputs.
        overwrite: replace a file of any kind, unless this run reads or makes it.

    Raises imaging.batch.discover.PlanError or OSError with a sentence.
    """
    taken = {os.path.realpath(path) for job in plan.jobs for path in (job.input, job.output)}
    taken |= {os.path.realpath(each) for each in others if each is not None}
    for flag, (extra, known) in extras.items():
        if extra is None:
            continue
        if os.path.realpath(extra) in taken:
            raise PlanError(f"{flag} {extra} would replace an input or a result")
        taken.add(os.path.realpath(extra))
        path = Path(extra)
        check_writable(path)
        if not overwrite and os.path.lexists(path) and not (path.is_file() and known(path)):
            raise PlanError(
                f"{flag} {extra} exists and is not of an earlier run; name another file, or --overwrite"
                " replaces it"
            )


def write_sheet(sheet: Sheet, path: Path) -> None:
    """Write a contact sheet, by which `is_sheet` knows it again, with the folders on the way.

    Raises OSError or imaging.PictureError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write(marked(Picture.from_pixels(sheet), _SHEET, path), path, overwrite=True)


def is_sheet(path: Path) -> bool:
    """Say whether a file is a contact sheet of ours; a BMP cannot tell. Raises OSError."""
    return bears(path, _SHEET)
