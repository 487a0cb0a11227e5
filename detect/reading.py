"""Reading the pictures of a set: what is remembered of each, and what is computed of it at a level."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from detect.duplicates import Trace, perceptual_hash, thumbnail
from detect.equalise import Equaliser, TooSmallError, pixel_hash, to_bytes
from detect.facts import Facts, examine
from detect.frequency import block_statistics
from detect.layouts import Sample
from imaging.errors import PictureError
from imaging.io import read
from imaging.picture import on_white


@dataclass(frozen=True)
class Look:
    """A picture without its pixels."""

    sample: Sample
    facts: Facts
    trace: Trace


@dataclass(frozen=True)
class Described:
    """A picture at one level."""

    facts: Facts
    """Of the file or, where there is none any more, of the picture that was recompressed."""
    statistics: Float[np.ndarray, " features"]


class Reader:
    """Read pictures, and remember which could not be read."""

    def __init__(self, expected: int, progress: Callable[[float], object] = lambda share: None) -> None:
        """Prepare to read `expected` pictures; `progress` is called with the share that is done."""
        self._total, self._progress, self._done = max(1, expected), progress, 0
        self.failed: dict[str, str] = {}

    def look(self, samples: Sequence[Sample]) -> list[Look]:
        """Return facts and traces, training pictures first, so that of duplicates those are kept."""
        looks: list[Look] = []
        for sample in sorted(samples, key=lambda each: (each.split != "train", each.name)):
            self._count()
            try:
                examined = examine(sample.path)
            except PictureError as error:
                self.failed[sample.name] = str(error)
                continue
            images = examined.images
            trace = Trace(pixel_hash(to_bytes(images)), perceptual_hash(images), thumbnail(images))
            looks.append(Look(sample, examined.facts, trace))
        return looks

    def describe(self, looks: Sequence[Look], equaliser: Equaliser) -> list[Described | None]:
        """Return the pictures at a level, None for those below its side."""
        found: list[Described | None] = []
        for look in looks:
            self._count()
            try:
                found.append(_describe(look, equaliser))
            except TooSmallError:
                found.append(None)
        return found

    def _count(self) -> None:
        self._done += 1
        self._progress(min(1.0, self._done / self._total))


def _describe(look: Look, equaliser: Equaliser) -> Described:
    equalised = equaliser(on_white(read(look.sample.path)))
    facts, pixels = look.facts, equalised.pixels
    if equalised.recompressed:
        # there is no file any more; what a lossless one would take still tells how busy the picture is
        packed = zlib.compress(pixels.permute(1, 2, 0).contiguous().numpy().tobytes(), level=1)
        facts = Facts("JPEG", pixels.shape[-1], pixels.shape[-2], len(packed), subsampling="4:2:0")
    return Described(facts, block_statistics(pixels[None] / 255)[0].numpy())
