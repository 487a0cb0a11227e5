"""What a picture's file gives away beside its pixels: format, size, quantisation, metadata.

None of it says who made the picture, and any of it may happen to differ between the real and the generated
pictures of a set, which a detector then learns in the place of what it was meant to.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from imaging.io import read
from imaging.picture import Images, Picture, on_white
from imaging.transforms import quantisation_steps


@dataclass(frozen=True)
class Facts:
    """A picture file without its pixels."""

    format: str
    width: int
    height: int
    bytes: int
    exif: bool = False
    icc: bool = False
    quantisation: str | None = None
    """A JPEG's quantisation tables, as eight hexadecimal digits."""
    quality: int | None = None
    """libjpeg's quality, 1 to 100, whose luma table is nearest to a JPEG's own."""
    subsampling: str | None = None
    """A JPEG's colour subsampling, such as 4:2:0."""
    progressive: bool = False

    @property
    def bytes_per_pixel(self) -> float:
        return self.bytes / (self.width * self.height)


@dataclass(frozen=True)
class Examined:
    """A picture file, read once: its pixels, its facts and the hash of its bytes."""

    picture: Picture
    facts: Facts
    sha256: str

    @property
    def images(self) -> Images:
        """See `on_white`."""
        return on_white(self.picture)


def examine(path: Path, *, max_megapixels: float = 200.0) -> Examined:
    """Read a picture file with everything that it gives away.

    Raises:
        imaging.PictureError: it cannot be read; the message is one line.
    """
    picture = read(path, max_megapixels=max_megapixels)
    data = path.read_bytes()
    return Examined(picture, facts_of(data, picture), hashlib.sha256(data).hexdigest())


def facts_of(data: bytes, picture: Picture) -> Facts:
    """Return the facts of a file's bytes and the picture that was read from them."""
    facts = Facts(
        picture.format,
        picture.width,
        picture.height,
        len(data),
        exif=picture.exif is not None,
        icc=picture.icc is not None,
    )
    return _with_tables(facts, data) if picture.format == "JPEG" else facts


def _with_tables(facts: Facts, data: bytes) -> Facts:
    """The facts with what the headers of a JPEG say."""
    tables: dict[int, tuple[int, ...]] = {}
    for marker, body in _segments(data):
        if marker == 0xDB:
            tables |= _quantisation_tables(body)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
            facts = replace(facts, subsampling=_subsampling(body), progressive=progressive)
    packed = repr(sorted(tables.items())).encode()
    quality = _quality(tables[0]) if 0 in tables else None
    return replace(facts, quantisation=hashlib.sha256(packed).hexdigest()[:8], quality=quality)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield a JPEG's marker segments up to the first scan; what is cut off is left out."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length


def _quantisation_tables(body: bytes) -> dict[int, tuple[int, ...]]:
    """The tables of a DQT segment by their number, in zig-zag order."""
    tables, at = {}, 0
    while at < len(body):
        wide, number = body[at] >> 4, body[at] & 15
        code, size = (">64H", 128) if wide else (">64B", 64)
        if at + 1 + size > len(body):
            break
        tables[number] = struct.unpack_from(code, body, at + 1)
        at += 1 + size
    return tables


def _subsampling(body: bytes) -> str | None:
    """How often colours are sampled, from a frame header: 4:4:4, 4:2:2, 4:2:0, or the luma's factors."""
    count = body[5] if len(body) > 5 else 0
    factors = [body[6 + 3 * index + 1] for index in range(count) if len(body) > 6 + 3 * index + 1]
    if count != 3 or len(factors) != 3:
        return None
    names = {0x11: "4:4:4", 0x21: "4:2:2", 0x22: "4:2:0", 0x12: "4:4:0", 0x41: "4:1:1"}
    same = factors[1] == factors[2] == 0x11
    return names.get(factors[0], f"{factors[0]:02x}") if same else "-".join(f"{each:02x}" for each in factors)


def _quality(table: tuple[int, ...]) -> int:
    apart = np.abs(_standard_tables() - np.asarray(table)).sum(1)
    return int(apart.argmin()) + 1


@cache
def _standard_tables() -> np.ndarray:
    """libjpeg's luma tables for qualities 1 to 100, in zig-zag order: [100, 64]."""
    luma, _ = quantisation_steps(torch.arange(1.0, 101.0), torch.zeros(1))
    return luma.reshape(100, 64).numpy()[:, zigzag()]


@cache
def zigzag() -> tuple[int, ...]:
    """Return the positions in a row-major 8 x 8 block in JPEG's order of frequencies."""
    cells = [(row, column) for row in range(8) for column in range(8)]
    ordered = sorted(cells, key=lambda cell: (sum(cell), cell[0] if sum(cell) % 2 else cell[1]))
    return tuple(8 * row + column for row, column in ordered)
