"""Read pictures with everything that belongs to them, and write them back so that nothing is lost unsaid.

>>> picture = read("drawing.png")                                        # doctest: +SKIP
>>> write(picture.with_pixels(perturbed), "drawing.protected.png")       # doctest: +SKIP
"""

import os
from collections.abc import Callable
from pathlib import Path

from imaging.decode import MIN_SIDE, decode
from imaging.encode import encode
from imaging.errors import (
    DamagedPictureError,
    MissingExtraError,
    PictureError,
    PictureSizeError,
    PictureWriteError,
    UnsupportedPictureError,
)
from imaging.formats import PICTURE_SUFFIXES, PicturePath, format_of, is_lossless, sniff
from imaging.guards import one_line
from imaging.picture import Picture
from imaging.whole import whole

__all__ = [
    "MIN_SIDE",
    "PICTURE_SUFFIXES",
    "DamagedPictureError",
    "MissingExtraError",
    "Picture",
    "PictureError",
    "PictureSizeError",
    "PictureWriteError",
    "UnsupportedPictureError",
    "is_lossless",
    "read",
    "write",
]

_HEAD_BYTES = 64
_MAX_MEGAPIXELS = 200.0
_NAMES = "PNG, JPEG, WebP, TIFF, AVIF, GIF, BMP or HEIC"


def read(path: PicturePath, *, max_megapixels: float = _MAX_MEGAPIXELS) -> Picture:
    """Read a picture: upright, in RGB, with alpha, frames and metadata; the content decides on the format.

    Grayscale, palette and black-and-white pictures become RGB, and CMYK or gray with a profile becomes sRGB
    through that profile; `picture.notes` says so, as it does about anything that could not be kept.

    Args:
        path: the file.
        max_megapixels: the most pixels, over all frames, to decode; it guards against decompression bombs.

    Raises:
        PictureError: the file is missing or a folder; its subclasses tell damaged files, sizes out of range,
            colour modes that cannot be kept and missing optional packages apart. The message is one line.
    """
    name = str(path)
    try:
        return _read(Path(path), max_megapixels)
    except PictureError as error:
        raise type(error)(f"{name!r} {error}") from error
    except OSError as error:
        raise PictureError(f"{name!r} cannot be read: {one_line(error.strerror or error)}") from error


def _read(path: Path, max_megapixels: float) -> Picture:
    data, format = _load(path)
    return decode(data, format, max_pixels=round(max_megapixels * 1e6))


def _load(path: Path) -> tuple[bytes, str]:
    if path.is_dir():
        raise PictureError("is a folder; name a picture file")
    if not path.exists():
        raise PictureError("does not exist")
    if not path.is_file():
        raise PictureError("is no regular file")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head:
            raise DamagedPictureError("is empty (0 bytes)")
        format = sniff(head)
        if format is None:
            raise UnsupportedPictureError(f"is no picture that can be read; expected {_NAMES}")
        return head + file.read(), format


def write(
    picture: Picture,
    path: PicturePath,
    *,
    overwrite: bool = False,
    check: Callable[[Picture], object] | None = None,
) -> tuple[str, ...]:
    """Write a picture in the format that the path's suffix names, with its metadata.

    PNG, WebP, TIFF and BMP keep every pixel. JPEG (quality 95), AVIF and HEIC (quality 90) are written
    without chroma subsampling, which would discard most of a perturbation; GIF has 256 colours per frame.
    The file appears complete or not at all, and the same picture gives the same bytes again.

    Args:
        picture: what to write.
        path: where to; its folder must exist.
        overwrite: replace a file that exists already.
        check: called with what the written file reads as, before it takes its place; if it raises, nothing
            is replaced.

    Returns:
        One sentence for each thing that the format could not carry.

    Raises:
        UnsupportedPictureError: the suffix is unknown, or the format lacks transparency, frames or 16 bits.
        MissingExtraError: the format needs an optional package.
        PictureWriteError: the file exists, the folder does not, or the disk is full.
    """
    name, path = str(path), Path(path)
    target = format_of(path)
    try:
        if not overwrite and os.path.lexists(path):
            raise PictureWriteError("exists already; pass overwrite=True to replace it")
        if not path.parent.is_dir():
            raise PictureWriteError("cannot be written: its folder does not exist")
        data, notes = encode(picture, target)
        with whole(path) as partial:
            _write_new(data, partial)
            if check is not None:
                del data  # a large picture is in memory often enough
                check(_read(partial, _MAX_MEGAPIXELS))
    except PictureError as error:
        raise type(error)(f"{name!r} {error}") from error
    except OSError as error:
        raise PictureWriteError(f"{name!r} cannot be written: {one_line(error.strerror or error)}") from error
    return notes


def _write_new(data: bytes, path: Path) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
