"""Animated WebP without any loss.

libwebp's own animation encoder rewrites the colours of transparent pixels and joins similar frames. Here
every frame is a complete still picture, encoded exactly, and only the container around them is laid out
(https://developers.google.com/speed/webp/docs/riff_container).
"""

import struct
from collections.abc import Iterator, Sequence

_ICC, _ALPHA, _EXIF, _XMP, _ANIMATION = 0x20, 0x10, 0x08, 0x04, 0x02
_DO_NOT_BLEND = 0x02
_LONGEST_DURATION, _MOST_PLAYS = 2**24 - 1, 2**16 - 1


def join_frames(
    stills: Sequence[bytes],
    size: tuple[int, int],
    durations: Sequence[int],
    *,
    plays: int,
    alpha: bool,
    icc: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
) -> bytes:
    """Join lossless WebP files of one size into an animation.

    Args:
        stills: one file per frame, without metadata.
        size: width and height.
        durations: milliseconds per frame.
        plays: how often it is shown; 0 stands for endlessly.
        alpha: whether any frame has transparency.
        icc: colour profile.
        exif: EXIF block from its byte-order mark on.
        xmp: XMP packet.
    """
    extent = _three_bytes(size[0] - 1) + _three_bytes(size[1] - 1)
    flags = _ANIMATION | _ALPHA * alpha | _ICC * bool(icc) | _EXIF * bool(exif) | _XMP * bool(xmp)
    chunks = [_chunk(b"VP8X", struct.pack("<I", flags) + extent)]
    if icc:
        chunks.append(_chunk(b"ICCP", icc))
    chunks.append(_chunk(b"ANIM", bytes(4) + struct.pack("<H", min(plays, _MOST_PLAYS))))
    for still, duration in zip(stills, durations, strict=True):
        shown = _three_bytes(min(duration, _LONGEST_DURATION))
        chunks.append(_chunk(b"ANMF", bytes(6) + extent + shown + bytes([_DO_NOT_BLEND]) + _bitstream(still)))
    if exif:
        chunks.append(_chunk(b"EXIF", exif))
    if xmp:
        chunks.append(_chunk(b"XMP ", xmp))
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _bitstream(still: bytes) -> bytes:
    for name, content in _chunks(still):
        if name == b"VP8L":
            return _chunk(name, content)
    raise ValueError("a frame of a lossless animation must be a lossless WebP file")


def _chunks(webp: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(webp):
        length = int.from_bytes(webp[at + 4 : at + 8], "little")
        yield webp[at : at + 4], webp[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _three_bytes(value: int) -> bytes:
    return value.to_bytes(3, "little")
