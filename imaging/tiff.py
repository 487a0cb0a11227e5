"""What is particular to TIFF: metadata that lives in tags, pages, and files that are written here."""

import struct
import zlib
from collections.abc import Iterable, MutableMapping
from io import BytesIO
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import UInt
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from imaging.picture import Picture

Page = UInt[np.ndarray, "height width channels"]

_EXIF_DIRECTORY, _GPS_DIRECTORY = 0x8769, 0x8825
# Tags that speak of the picture and not of the file's layout: description, camera, software, date, artist,
# copyright, rating, and the fields of Windows' file properties.
_DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x4746, 0x8298, *range(0x9C9B, 0x9CA0))
_BYTE, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 3, 4, 5, 7
_HEADER_BYTES, _STRIP_BYTES = 8, 2**20


def pages_alike(image: TiffImageFile) -> bool:
    """Say whether all pages have one size; the first page is current afterwards."""
    sizes = set()
    for index in range(image.n_frames):
        image.seek(index)
        sizes.add(image.size)
    image.seek(0)
    return len(sizes) == 1


def first_tags(data: bytes) -> ImageFileDirectory_v2:
    """Return the tags of a file's first page, also of one whose pixels Pillow does not know.

    Raises whatever Pillow raises on damaged tags.
    """
    big = data[2] == 43  # BigTIFF, whose header is twice as long
    tags = ImageFileDirectory_v2(data[: 16 if big else 8])
    file = BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def exif_from_tags(image: TiffImageFile) -> bytes | None:
    """Collect what the tags of the current page say about the picture into an EXIF block."""
    kept = Image.Exif()
    _copy_descriptive(image.getexif(), kept)
    return kept.tobytes() if kept else None


def tags_from(picture: Picture) -> ImageFileDirectory_v2:
    """Turn a picture's EXIF, XMP, colour profile and resolution into tags.

    Raises whatever Pillow raises on EXIF that it cannot take apart.
    """
    tags = ImageFileDirectory_v2()
    if picture.exif:
        exif = Image.Exif()
        exif.load(picture.exif)
        _copy_descriptive(exif, tags)
    if picture.xmp:
        _put(tags, 700, _BYTE, picture.xmp)
    if picture.icc:
        _put(tags, 34675, _UNDEFINED, picture.icc)
    if picture.dpi:
        _put(tags, 282, _RATIONAL, picture.dpi[0])
        _put(tags, 283, _RATIONAL, picture.dpi[1])
        _put(tags, 296, _SHORT, 2)  # the unit is the inch
    return tags


def _copy_descriptive(source: Image.Exif, target: MutableMapping[int, Any]) -> None:
    for tag in _DESCRIPTIVE:
        if tag in source:
            target[tag] = source[tag]
    for directory in (_EXIF_DIRECTORY, _GPS_DIRECTORY):
        if entries := source.get_ifd(directory):
            target[directory] = dict(entries)


def _put(tags: ImageFileDirectory_v2, tag: int, kind: int, value: Any) -> None:
    tags.tagtype[tag] = kind
    tags[tag] = value


def encode_pages(pages: Iterable[Page], tags: ImageFileDirectory_v2) -> bytes:
    """Encode RGB(A) pages of 8 or 16 bits, deflated after horizontal differences (TIFF 6.0, section 14).

    libtiff, behind Pillow, has no 16-bit colour and reports EXIF directories that it dislikes on stderr.

    Args:
        pages: uint8 or uint16 [height, width, 3 or 4].
        tags: descriptive tags, given to every page; those of the layout are added to them.
    """
    file = BytesIO()
    link = None
    for page in pages:
        strips = _strips(page)
        _put_layout(tags, page, [len(strip) for strip in strips])
        file.write(bytes(file.tell() % 2))  # directories begin at even offsets
        start = file.tell() or _HEADER_BYTES
        tags.save(file)  # moves the strips' offsets behind itself
        file.writelines(strips)
        if link is not None:
            file.getbuffer()[link : link + 4] = struct.pack("<I", start)
        link = start + 2 + 12 * len(tags)  # where this directory points to the next one
    return file.getvalue()


def _put_layout(tags: ImageFileDirectory_v2, page: Page, lengths: list[int]) -> None:
    height, width, channels = page.shape
    _put(tags, 256, _LONG, width)
    _put(tags, 257, _LONG, height)
    _put(tags, 258, _SHORT, (8 * page.itemsize,) * channels)
    _put(tags, 259, _SHORT, 8)  # compression: deflate
    _put(tags, 262, _SHORT, 2)  # photometric interpretation: RGB
    _put(tags, 273, _LONG, tuple(accumulate(lengths[:-1], initial=0)))
    _put(tags, 277, _SHORT, channels)
    _put(tags, 278, _LONG, _rows_per_strip(page))
    _put(tags, 279, _LONG, tuple(lengths))
    _put(tags, 317, _SHORT, 2)  # predictor: horizontal differences
    if channels == 4:
        _put(tags, 338, _SHORT, 2)  # extra sample: alpha, not multiplied into the colours


def _rows_per_strip(page: Page) -> int:
    return max(1, min(page.shape[0], _STRIP_BYTES // page[0].nbytes))


def _strips(page: Page) -> list[bytes]:
    rows = _rows_per_strip(page)
    return [_deflate(page[top : top + rows]) for top in range(0, len(page), rows)]


def _deflate(rows: Page) -> bytes:
    differences = rows.copy()
    differences[:, 1:] -= rows[:, :-1]
    return zlib.compress(differences.astype(rows.dtype.newbyteorder("<")).tobytes())
