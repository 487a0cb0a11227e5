"""Metadata as bytes: made upright, freed of unprotected previews, and otherwise left as it is.

Rewriting an EXIF block moves its parts, and camera makers' notes hold absolute offsets that then point
nowhere. So the two things that have to go, orientation and preview, are removed in place; every other byte
stays put.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_ORIENTATION = 0x0112
_PREVIEW_OFFSET, _PREVIEW_LENGTH = 0x0201, 0x0202
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# The type identifier of a C2PA manifest store's description box, the same in every container.
_C2PA_STORE = bytes.fromhex("6332706100110010800000aa00389b71")


def upright_exif(exif: bytes) -> bytes:
    """Delete orientation and preview picture from an EXIF block, with or without its "Exif" heading.

    Raises:
        ValueError: the block cannot be parsed.
    """
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    data = bytearray(exif)
    try:
        order = _BYTE_ORDERS[bytes(data[:4])]
        (start,) = struct.unpack_from(order + "I", data, 4)
        entries, preview = _directory(data, order, start)
        kept = [entry for entry in entries if entry[0] != _ORIENTATION]
        _write_directory(data, order, start, kept, len(entries))
        if preview:
            _blank_preview(data, order, preview)
    except (KeyError, struct.error) as error:
        raise ValueError("the EXIF block cannot be parsed") from error
    return bytes(data)


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


def _blank_preview(data: bytearray, order: str, start: int) -> None:
    # Nothing points to the preview any longer, but its bytes would still show the unprotected picture.
    entries, _ = _directory(data, order, start)
    values = {tag: struct.unpack(order + "I", value)[0] for tag, kind, _, value in entries if kind == 4}
    offset, length = values.get(_PREVIEW_OFFSET, 0), values.get(_PREVIEW_LENGTH, 0)
    end = min(offset + length, len(data))
    if 8 <= offset < end:
        data[offset:end] = bytes(end - offset)


def upright_xmp(xmp: bytes) -> bytes:
    """Set the orientation in an XMP packet to upright and empty its embedded previews."""
    xmp = re.sub(rb"(tiff:Orientation\s*=\s*[\"'])\d+", rb"\g<1>1", xmp)
    xmp = re.sub(rb"(<tiff:Orientation>\s*)\d+", rb"\g<1>1", xmp)
    xmp = re.sub(rb"(xmpGImg:image\s*=\s*[\"'])[^\"'<]*", rb"\g<1>", xmp)
    return re.sub(rb"(<xmpGImg:image>)[^<]*", rb"\g<1>", xmp)


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
