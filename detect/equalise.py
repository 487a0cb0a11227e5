"""Take away what differs between real and generated pictures for reasons that have nothing to do with either.

Published sets hold real pictures as JPEG and generated ones as PNG, or each generator at one size, and
detectors learn that (Grommelt et al., 2024, arXiv 2403.17608). Three levels of hygiene: `raw`, decoded only;
`codec-equalised`, all recompressed alike; `codec+size-equalised`, all cropped and resized alike before that.
Saving JPEGs as PNG equalises nothing: their grid and their histogram of coefficients survive.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from imaging.picture import Images
from imaging.transforms import jpeg

Level = Literal["raw", "codec-equalised", "codec+size-equalised"]
LEVELS: tuple[Level, ...] = get_args(Level)
Pixels = UInt8[Tensor, "3 height width"]


class TooSmallError(ValueError):
    """A picture whose short side is below the side that all are brought to."""


@dataclass(frozen=True)
class Equalised:
    """A picture after equalisation."""

    pixels: Pixels
    recompressed: bool = False


@dataclass(frozen=True, kw_only=True)
class Equaliser:
    """One level of hygiene. All draws depend on the picture's pixels alone, never on its label or name."""

    level: Level = "codec-equalised"
    lowest_quality: int = 75
    highest_quality: int = 95
    """JPEG's qualities are drawn evenly from this range; colours are halved (4:2:0)."""
    side: int = 256
    """Of every picture after `codec+size-equalised`."""
    widest: int = 512
    """Windows that become a picture have sides drawn evenly from `side` to this: see `widest_window`."""
    grid_shift: int = 0
    """So many rows and columns at most are cut off before recompression, by chance: it moves the blocks of an
    earlier compression, so that its alignment says nothing."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"unknown level {self.level!r}; available: {', '.join(LEVELS)}")
        if not 1 <= self.lowest_quality <= self.highest_quality <= 100:
            raise ValueError(
                f"JPEG qualities lie between 1 and 100; got {self.lowest_quality} to {self.highest_quality}"
            )
        if self.level == "codec+size-equalised" and self.widest < self.side:
            raise ValueError(f"windows of at most {self.widest} px cannot be brought to {self.side} px")

    @property
    def identity(self) -> str:
        """A name that changes with the settings, for caches and records."""
        if self.level == "raw":
            return "raw"
        codec = f"jpeg{self.lowest_quality}-{self.highest_quality}/{self.grid_shift}"
        return codec if self.level == "codec-equalised" else f"{codec} {self.side}of{self.widest}"

    def __call__(self, images: Images) -> Equalised:
        """Equalise one picture [1, 3, height, width] in [0, 1].

        Raises TooSmallError where its short side is below `side` and sizes are equalised.
        """
        pixels = to_bytes(images)
        if self.level == "raw":
            return Equalised(pixels)
        generator = _generator(pixels)
        if self.level == "codec+size-equalised":
            pixels = self._window(pixels, generator)
        if self.grid_shift:
            top, left = (_draw(0, self.grid_shift, generator) for _ in range(2))
            pixels = pixels[:, top:, left:]
        quality = _draw(self.lowest_quality, self.highest_quality, generator)
        return recompress(pixels, quality)

    def _window(self, pixels: Pixels, generator: torch.Generator) -> Pixels:
        height, width = pixels.shape[-2:]
        if min(height, width) < self.side:
            raise TooSmallError(f"{width} x {height} px is below {self.side} px")
        if min(height, width) < self.widest:
            raise ValueError(
                f"{width} x {height} px is below the widest window, {self.widest} px: "
                "take widest_window of the whole set, or sizes would tell"
            )
        window = _draw(self.side, self.widest, generator)
        top, left = (_draw(0, extent - window, generator) for extent in (height, width))
        cut = pixels[:, top : top + window, left : left + window]
        if window == self.side:
            return cut
        resized = interpolate(cut[None].float(), size=[self.side] * 2, mode="bicubic", antialias=True)
        return resized[0].round().clamp(0, 255).to(torch.uint8)


def widest_window(short_sides: Iterable[int], side: int) -> int:
    """Return the widest window that every picture of at least `side` px has room for, at most twice `side`.

    One range for all: were windows drawn as wide as each picture allows, how much a picture was shrunk would
    tell how large it had been.
    """
    return min([2 * side, *(each for each in short_sides if each >= side)])


def recompress(pixels: Pixels, quality: int) -> Equalised:
    """Encode as JPEG with halved colours, and decode."""
    return Equalised(to_bytes(jpeg(pixels[None] / 255, quality)), recompressed=True)


def to_bytes(images: Images) -> Pixels:
    """Return one image [1, 3, height, width] in [0, 1] as bytes [3, height, width]."""
    return (images[0] * 255).round().clamp(0, 255).to(torch.uint8)


def pixel_hash(pixels: Pixels) -> str:
    """Return a SHA-256 of pixels and size, the same whatever file they came from."""
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    digest.update(pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _generator(pixels: Pixels) -> torch.Generator:
    return torch.Generator().manual_seed(int(pixel_hash(pixels)[:15], 16))


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
