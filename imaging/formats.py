"""The picture formats: how a file is recognised, what it is called, and what it is able to carry."""

import os
from dataclasses import dataclass
from pathlib import Path

from imaging.errors import UnsupportedPictureError

PicturePath = str | os.PathLike[str]


@dataclass(frozen=True)
class Format:
    """One file format as this package writes it.

    `carries` lists what survives in the file beside 8-bit RGB: any of `alpha`, `frames`, `durations`,
    `plays`, `deep` (16 bits per channel), `icc`, `exif`, `xmp`, `dpi`, `text` and `comment`.
    `largest` is the longest side in pixels.
    """

    name: str
    suffixes: tuple[str, ...]
    lossless: bool
    carries: frozenset[str]
    largest: int


def _format(name: str, suffixes: str, carries: str, *, largest: int, lossless: bool = False) -> Format:
    return Format(name, tuple(suffixes.split()), lossless, frozenset(carries.split()), largest)


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        _format(
            "PNG",
            ".png .apng",
            "alpha frames durations plays deep icc exif xmp dpi text comment",
            largest=2**31 - 1,
            lossless=True,
        ),
        _format("JPEG", ".jpg .jpeg .jpe .jfif", "icc exif xmp dpi comment", largest=65_500),
        _format("WEBP", ".webp", "alpha frames durations plays icc exif xmp", largest=16_383, lossless=True),
        _format("TIFF", ".tif .tiff", "alpha frames deep icc exif xmp dpi", largest=2**31 - 1, lossless=True),
        _format("AVIF", ".avif .avifs", "alpha frames durations icc exif xmp", largest=65_536),
        _format("HEIC", ".heic .heif .hif", "alpha icc exif xmp", largest=65_535),
        _format("GIF", ".gif", "alpha frames durations plays comment", largest=65_535),
        _format("BMP", ".bmp .dib", "dpi", largest=2**31 - 1, lossless=True),
    )
}

PICTURE_SUFFIXES: frozenset[str] = frozenset(suffix for each in FORMATS.values() for suffix in each.suffixes)
"""Lower-case file suffixes, with their dot, that can be read and written (HEIC needs its extra)."""

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def format_of(path: PicturePath) -> Format:
    """Return the format that `path`'s suffix asks for.

    Raises:
        UnsupportedPictureError: the suffix is not one of `PICTURE_SUFFIXES`.
    """
    suffix = Path(path).suffix.lower()
    for each in FORMATS.values():
        if suffix in each.suffixes:
            return each
    known = " ".join(sorted(PICTURE_SUFFIXES))
    asked = f"has the suffix {suffix}, which is no picture format" if suffix else "has no suffix"
    raise UnsupportedPictureError(f"{str(path)!r} {asked}; use one of {known}")


def is_lossless(path: PicturePath) -> bool:
    """Say whether `write` to this path keeps every pixel exactly (by the suffix; WebP is written lossless).

    Raises:
        UnsupportedPictureError: the suffix is not one of `PICTURE_SUFFIXES`.
    """
    return format_of(path).lossless


def sniff(head: bytes) -> str | None:
    """Return the name in `FORMATS` of the file that starts with `head` (32 bytes or more), or None.

    The content decides, never the suffix: a PNG called `.jpg` is a PNG.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:2] == b"BM":
        return "BMP"
    return _sniff_isobmff(head) if head[4:8] == b"ftyp" else None


def _sniff_isobmff(head: bytes) -> str | None:
    # AVIF and HEIC share one container, and both may lead with the generic brand "mif1".
    length = int.from_bytes(head[:4], "big")
    brands = {head[at : at + 4] for at in range(8, min(length, len(head)), 4) if at != 12}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIC" if brands & _HEIC_BRANDS else None
