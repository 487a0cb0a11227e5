"""Metadata as bytes: made upright, freed of unprotected previews, and otherwise left as it is.

Rewriting an EXIF block moves its parts, and camera makers' notes hold absolute offsets that then point
nowhere. So the two things that have to go, orientation and previews, are removed in place; every other byte
stays put. Previews go because they show the picture as it was before it was changed.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from imaging.previews import jpeg_runs, without_xmp_previews

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_ORIENTATION = 0x0112
# Where a directory keeps its picture, as offsets and lengths: a JPEG in one piece, pixels in strips.
_PREVIEWS = ((0x0201, 0x0202), (0x0111, 0x0117))
_INTEGERS = {1: "B", 3: "H", 4: "I"}  # by the number of a type in EXIF
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_HEADER_BYTES = 8
# The type identifier of a C2PA manifest store's description box, the same in every container.
_C2PA_STORE = bytes.fromhex("6332706100110010800000aa00389b71")


def upright_exif(exif: bytes) -> bytes:
    """Delete orientation and previews from an EXIF block, with or without its "Exif" heading.

    Raises:
        ValueError: the block cannot be parsed.
    """
    data = bytearray(without_previews(exif))
    with _parsing():
        order, start = _header(data)
        entries, _ = _directory(data, order, start)
        kept = [entry for entry in entries if entry[0] != _ORIENTATION]
        _write_directory(data, order, start, kept, len(entries))
    return bytes(data)


def without_previews(exif: bytes) -> bytes:
    """Blank every preview in an EXIF block, which loses its "Exif" heading and keeps its layout.

    Previews are the picture of the second directory, and JPEG files wherever they lie: cameras keep larger
    ones in their makers' notes.

    Raises:
        ValueError: the block cannot be parsed.
    """
    data = bytearray(without_heading(exif))
    with _parsing():
        order, start = _header(data)
        _, second = _directory(data, order, start)
        if second:
            entries, _ = _directory(data, order, second)
            _blank_pictures(data, order, entries)
    for begin, end in jpeg_runs(data, _HEADER_BYTES):
        data[begin:end] = bytes(end - begin)
    return bytes(data)


def without_heading(exif: bytes) -> bytes:
    """Return an EXIF block from its byte-order mark on."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    return exif


@contextmanager
def _parsing() -> Iterator[None]:
    try:
        yield
    except (KeyError, struct.error) as error:
        raise ValueError("the EXIF block cannot be parsed") from error


def _header(data: bytearray) -> tuple[str, int]:
    order = _BYTE_ORDERS[bytes(data[:4])]
    (start,) = struct.unpack_from(order + "I", data, 4)
    return order, start


_Entry = tuple[int, int, int, bytes]  # tag, type, count, value or offset


def _directory(data: bytearray, order: str, start: int) -> tuple[list[_Entry], int]:
    (count,) = struct.unpack_from(order + "H", data, start)
    at = [start + 2 + 12 * index for index in range(count)]
    entries = [struct.unpack_from(order + "HHI4s", data, offset) for offset in at]
    (following,) = struct.unpack_from(order + "I", data, start + 2 + 12 * count)
    return entries, following


def _write_directory(data: bytearray, order: str, start: int, entries: list[_Entry], before: int) -> None:
    packed = b"".join(struct.pack(order + "HHI4s", *entry) for entry in entries)
    block = struct.pack(order + "H", len(entries)) + packed + bytes(4)
    size = 2 + 12 * before + 4
    data[start : start + size] = block.ljust(size, b"\0")


def _blank_pictures(data: bytearray, order: str, entries: list[_Entry]) -> None:
    values = {entry[0]: _integers(data, order, entry) for entry in entries if _holds_picture(entry)}
    for offset_tag, length_tag in _PREVIEWS:
        for offset, length in zip(values.get(offset_tag, ()), values.get(length_tag, ()), strict=False):
            end = min(offset + length, len(data))
            if _HEADER_BYTES <= offset < end:
                data[offset:end] = bytes(end - offset)


def _holds_picture(entry: _Entry) -> bool:
    tag, kind, *_ = entry
    return kind in _INTEGERS and any(tag in tags for tags in _PREVIEWS)


def _integers(data: bytearray, order: str, entry: _Entry) -> tuple[int, ...]:
    _, kind, count, value = entry
    layout = f"{order}{count}{_INTEGERS[kind]}"
    if struct.calcsize(layout) <= len(value):
        return struct.unpack_from(layout, value)
    return struct.unpack_from(layout, data, *struct.unpack(order + "I", value))


def upright_xmp(xmp: bytes) -> bytes:
    """Set the orientation in an XMP packet to upright and empty its embedded previews."""
    xmp = re.sub(rb"(tiff:Orientation\s*=\s*[\"'])\d+", rb"\g<1>1", xmp)
    xmp = re.sub(rb"(<tiff:Orientation>\s*)\d+", rb"\g<1>1", xmp)
    return without_xmp_previews(xmp)


def colour_space(icc: bytes) -> str:
    """Return the colour space of an ICC profile, such as RGB, GRAY, CMYK or Lab; "" for no valid profile."""
    return icc[16:20].decode("ascii", "replace").strip() if icc[36:40] == b"acsp" else ""


def plausible_dpi(value: Any) -> tuple[float, float] | None:
    """Return `value` as two finite, positive resolutions below a million, or None for anything else."""
    try:
        horizontal, vertical = (float(each) for each in value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    usable = all(math.isfinite(each) and 0 < each < 1e6 for each in (horizontal, vertical))
    return (horizontal, vertical) if usable else None


def has_content_credentials(data: bytes) -> bool:
    """Say whether a file holds a C2PA manifest, which describes pixels that are about to change."""
    return _C2PA_STORE in data


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and content of each chunk of a PNG, up to the first incomplete one."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Return one chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
