"""Previews inside metadata, which would show a picture as it was before it was changed."""

import re
from collections.abc import Iterator

# The beginning of a JPEG and the markers that its first segment can have.
_JPEG = re.compile(rb"\xff\xd8\xff[\xc0-\xcf\xdb\xdd\xe0-\xef\xfe]")
# Whatever follows a scan of a JPEG: stuffed zeros and restarts are part of it.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_END = b"\xff\xd9"
# Namespaces of pictures in XMP, as Base64; the prefixes that they usually have; and the property's name.
_XMP_PREVIEWS = (
    (b"http://ns.adobe.com/xap/1.0/g/img/", (b"xmpGImg", b"xapGImg"), b"image"),
    (b"http://ns.google.com/photos/1.0/image/", (b"GImage",), b"Data"),
    (b"http://ns.google.com/photos/1.0/depthmap/", (b"GDepth",), b"Data"),
)


def jpeg_runs(data: bytes | bytearray, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield where each JPEG file inside `data` begins and ends, a preview within another being part of it.

    One that is damaged ends at the next end marker or, without any, where it stops going on like a JPEG; one
    that is cut off ends with the data. What has been yielded may be blanked at once.
    """
    last = data.rfind(_END)
    while begin := _JPEG.search(data, start):
        end = _jpeg_end(data, begin.start() + 2, last)
        if end:
            yield begin.start(), end
        start = end or begin.end()


def _jpeg_end(data: bytes | bytearray, at: int, last: int) -> int | None:
    # Segments are skipped by their lengths, because one may hold a JPEG with an end marker of its own.
    segments = 0
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _END[1]:
        segments += 1
        scan = data[at + 1] == 0xDA
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        if scan:
            marker = _MARKER.search(data, at)
            at = marker.start() if marker else len(data)
    if at <= last:
        return data.find(_END, at) + len(_END)
    if at + 4 > len(data):
        return len(data)
    # Numbers in a maker's note may look like a beginning, but hardly like two segments.
    return at if segments > 1 else None


def without_xmp_previews(xmp: bytes) -> bytes:
    """Empty the pictures in an XMP packet, under any prefix that it declares for their namespaces.

    A packet that is no valid XML is searched in the same way; what an element without an end holds goes up to
    the next one of its name.
    """
    for namespace, usual, name in _XMP_PREVIEWS:
        declaration = rb"xmlns(?::([^\s:=\"'<>/]++))?\s*=\s*[\"']\s*" + re.escape(namespace) + rb"\s*[\"']"
        prefixes = {*usual, *re.findall(declaration, xmp)}
        names = sorted(prefix + b":" + name for prefix in prefixes if prefix)
        xmp = _without_attributes(xmp, _one_of(names))
        # Elements may also have their namespace without a prefix; attributes cannot.
        xmp = _without_contents(xmp, _one_of([*names, name] if b"" in prefixes else names))
    return xmp


def _one_of(names: list[bytes]) -> bytes:
    return rb"(?:" + b"|".join(map(re.escape, names)) + rb")"


def _without_attributes(xmp: bytes, name: bytes) -> bytes:
    for quote in (b'"', b"'"):
        start = rb"((?<![^\s\"'])" + name + rb"\s*=\s*" + quote + rb")"
        xmp = re.sub(start + rb"[^<" + quote + rb"]*", rb"\1", xmp)
    return xmp


def _without_contents(xmp: bytes, name: bytes) -> bytes:
    # No part looks further than the next "<" or the next tag of the name, so the time is linear.
    tag = name + rb"(?=[\s/>])"
    start = rb"(<" + tag + rb"(?:[^<>\"']|\"[^<\"]*\"|'[^<']*')*+(?<!/)>)"
    return re.sub(start + rb"(?:[^<]++|<(?!/?" + tag + rb"))*+", rb"\1", xmp)
