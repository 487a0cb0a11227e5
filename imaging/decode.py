"""From the bytes of a picture file to a Picture, through Pillow, pillow-heif and (16 bits) libvips."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from imaging import deep
from imaging.colours import to_rgb, usable_profile
from imaging.errors import DamagedPictureError, MissingExtraError, PictureSizeError
from imaging.guards import decoding, quiet_libtiff, quiet_pillow
from imaging.metadata import (
    has_content_credentials,
    plausible_dpi,
    png_chunks,
    upright_exif,
    upright_xmp,
    without_heading,
    without_previews,
)
from imaging.picture import Picture
from imaging.previews import without_xmp_previews
from imaging.tiff import exif_from_tags, first_tags, pages_alike

MIN_SIDE = 32
"""Shortest side, in pixels, of a picture that can be protected."""

Frames = UInt[np.ndarray, "frames height width channels"]
Frame = UInt[np.ndarray, "height width channels"]

_ORIENTATION, _IPTC_RESOURCE, _IPTC_TAG = 0x0112, 0x0404, 0x83BB
_COLOUR_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
# Axes of [frames, height, width, channels] to be reversed, after the transposition of orientations 5 to 8.
_FLIPS = {1: (), 2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}


@dataclass
class _Decoded:
    """Pixels as stored, and what the container said about them."""

    pixels: Frames
    info: Mapping[Any, Any]
    orientation: int = 1
    icc: bytes | None = None
    exif: bytes | None = None
    durations: tuple[int, ...] = ()
    text: tuple[tuple[str, str], ...] = ()
    colour_chunks: tuple[tuple[bytes, bytes], ...] = ()
    notes: list[str] = field(default_factory=list)


def decode(data: bytes, format: str, *, max_pixels: int) -> Picture:
    """Decode a picture file's content, upright and in RGB.

    Args:
        data: the whole file.
        format: its name in `imaging.formats.FORMATS`, as `sniff` found it.
        max_pixels: the most pixels, over all frames, that may be decoded.

    Raises:
        PictureError: one of its subclasses, with a message that lacks the file's name.
    """
    with quiet_pillow() as warned, decoding():
        if format == "HEIC":
            decoded = _decode_heic(data, max_pixels)
        else:
            decoded = _decode_pillow(data, format, max_pixels)
        if has_content_credentials(data):
            decoded.notes.append("its Content Credentials (C2PA) describe other pixels and are not copied")
    decoded.notes += [f"while reading: {message}" for message in warned[:3]]
    return _picture(decoded, format)


def _picture(decoded: _Decoded, format: str) -> Picture:
    pixels, notes = decoded.pixels, decoded.notes
    if decoded.orientation != 1:
        pixels = pixels.swapaxes(1, 2) if decoded.orientation > 4 else pixels
        pixels = np.ascontiguousarray(np.flip(pixels, _FLIPS[decoded.orientation]))
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return Picture(
        integers=planes[:, :3],
        alpha=planes[:, 3:] if planes.shape[1] == 4 else None,
        format=format,
        icc=decoded.icc,
        exif=_clean_exif(decoded.exif, notes),
        xmp=_clean_xmp(decoded.info.get("xmp"), notes),
        dpi=plausible_dpi(decoded.info.get("dpi")),
        text=decoded.text,
        colour_chunks=decoded.colour_chunks,
        durations=decoded.durations,
        plays=_plays(decoded.info, format) if decoded.durations else 0,
        notes=tuple(dict.fromkeys(notes)),
    )


def _clean_exif(exif: bytes | None, notes: list[str]) -> bytes | None:
    if not exif:
        return None
    try:
        emptied = without_previews(exif)
        if emptied != without_heading(exif):
            notes.append("the previews in its EXIF data show the picture as it was and were emptied")
        return upright_exif(emptied)
    except ValueError:
        notes.append("its EXIF data is damaged and was dropped")
        return None


def _clean_xmp(xmp: Any, notes: list[str]) -> bytes | None:
    if not isinstance(xmp, bytes):
        return None
    emptied = without_xmp_previews(xmp)
    if emptied != xmp:
        notes.append("the previews in its XMP data show the picture as it was and were emptied")
    return upright_xmp(emptied)


def _plays(info: Mapping[str, Any], format: str) -> int:
    # A GIF counts repetitions after the first showing and omits the count to be shown once.
    if format != "GIF":
        return int(info.get("loop", 0))
    repetitions = info.get("loop")
    return 1 if repetitions is None else repetitions and repetitions + 1


def _check_size(size: tuple[int, int], frames: int, max_pixels: int) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise PictureSizeError(
            f"is too small: {width} x {height} px; both sides must have at least {MIN_SIDE}"
        )
    if width * height * frames > max_pixels:
        times = f" x {frames} frames" if frames > 1 else ""
        raise PictureSizeError(
            f"is too large: {width} x {height} px{times}; the limit is {max_pixels / 1e6:g} megapixels"
        )


def _decode_heic(data: bytes, max_pixels: int) -> _Decoded:
    try:
        pillow_heif = import_module("pillow_heif")
    except ImportError as error:
        raise MissingExtraError(
            "is HEIC, which needs pillow-heif; run: pip install 'vernis[heic]'"
        ) from error
    file = pillow_heif.open_heif(BytesIO(data))
    _check_size(file.size, 1, max_pixels)
    image = file.to_pillow()
    embedded = image.info.get("icc_profile") or None
    icc, notes = usable_profile(image.mode, embedded)
    if image.info["bit_depth"] > 8:
        notes.append(f"its {image.info['bit_depth']} bits per channel were reduced to 8")
    if len(file) > 1 or image.info["depth_images"]:
        notes.append("only the main picture of the HEIC file is read")
    pixels = np.array(to_rgb(image, embedded))[None]
    return _Decoded(pixels, image.info, icc=icc, exif=image.info["exif"], notes=notes)


def _decode_pillow(data: bytes, format: str, max_pixels: int) -> _Decoded:
    image = _open(data, format)
    indices, notes = _frame_indices(image)
    _check_size(image.size, len(indices), max_pixels)
    # From here on Pillow itself stops frames and tiles that turn out larger than the picture.
    Image.MAX_IMAGE_PIXELS = max_pixels
    embedded = image.info.get("icc_profile") or None
    exif = _tiff_exif(image, notes) if isinstance(image, TiffImageFile) else None
    bits = deep.bits_per_channel(image, data)
    if bits > 8:
        deep.check_supported(image, bits, len(indices))
    undeclared = deep.drops_channels(image, bits)
    if undeclared:
        notes.append("its extra channel, which is not declared to be transparency, was dropped")
    icc, colour_notes = usable_profile(image.mode, embedded)
    if format == "AVIF" and _exceeds_8_bits(data):
        notes.append("its 10 or 12 bits per channel were reduced to 8")
    if bits > 8:
        pixels, durations = deep.read_pixels(data, format, alpha=not undeclared)[None], ()
    else:
        with quiet_libtiff() if format == "TIFF" else nullcontext():
            pixels, durations = _read_frames(image, indices, embedded)
    return _Decoded(
        pixels,
        image.info,
        orientation=_orientation(image, notes),
        icc=icc,
        exif=exif or image.info.get("exif"),
        durations=durations,
        text=_text(image, notes),
        colour_chunks=_colour_chunks(data) if format == "PNG" and icc == embedded else (),
        notes=notes + colour_notes,
    )


def _open(data: bytes, format: str) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=[format])
    except UnidentifiedImageError as error:
        if format == "TIFF":
            deep.check_layout(first_tags(data))
        raise DamagedPictureError(
            f"starts like a {format} file but cannot be decoded; it is damaged"
        ) from error


def _frame_indices(image: Image.Image) -> tuple[range, list[str]]:
    """Return which of the file's frames are the picture, and notes about the others."""
    frames = getattr(image, "n_frames", 1)
    if image.format == "MPO" or "mp" in image.info:
        return range(1), ["further pictures inside the JPEG (previews, depth or gain maps) are not copied"]
    if image.info.get("default_image") and frames > 1:
        return range(1, frames), [
            "the still picture for viewers without animation gives way to the first frame"
        ]
    if isinstance(image, TiffImageFile) and frames > 1 and not pages_alike(image):
        return range(1), [f"only the first of its {frames} pages is read, because their sizes differ"]
    return range(frames), []


def _read_frames(image: Image.Image, indices: range, icc: bytes | None) -> tuple[Frames, tuple[int, ...]]:
    """Return complete frames and their durations; equal neighbours become one longer frame."""
    if len(indices) == 1:
        image.seek(indices[0])
        image.load()
        return np.array(to_rgb(image, icc))[None], ()
    frames: list[Frame] = []
    durations: list[int] = []
    pages = isinstance(image, TiffImageFile)
    for index in indices:
        image.seek(index)
        image.load()
        frame = np.array(to_rgb(image, icc).convert("RGBA"))
        duration = round(image.info.get("duration", 0))
        if frames and not pages and np.array_equal(frames[-1], frame):
            durations[-1] += duration
        else:
            frames.append(frame)
            durations.append(duration)
    stacked = np.stack(frames)
    opaque = (stacked[..., 3] == 255).all()
    return stacked[..., :3] if opaque else stacked, () if pages or len(frames) == 1 else tuple(durations)


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # The picture itself is fine. What damaged EXIF raises is as various as what damaged pixels do.
        notes.append("its orientation cannot be read, because its EXIF data is damaged")
        return 1
    return orientation if orientation in _FLIPS else 1


def _tiff_exif(image: TiffImageFile, notes: list[str]) -> bytes | None:
    try:
        return exif_from_tags(image)
    except Exception:
        # See _orientation.
        notes.append("its EXIF data is damaged and was dropped")
        return None


def _text(image: Image.Image, notes: list[str]) -> tuple[tuple[str, str], ...]:
    if image.info.get("photoshop", {}).get(_IPTC_RESOURCE) or _IPTC_TAG in getattr(image, "tag_v2", {}):
        notes.append("its IPTC data is not copied; EXIF and XMP are")
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        return (("Comment", comment.decode("latin-1")),)
    texts = getattr(image, "text", {}).items()
    # Raw profiles are EXIF, ICC or IPTC in disguise, and may hold a preview.
    kept = [(key, str(text)) for key, text in texts if not key.startswith(("XML:com.adobe", "Raw profile"))]
    return tuple(kept)


def _colour_chunks(png: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(chunk for chunk in png_chunks(png) if chunk[0] in _COLOUR_CHUNKS)


def _exceeds_8_bits(avif: bytes) -> bool:
    at = avif.find(b"av1C")  # the codec's configuration: its third byte holds the flag high_bitdepth
    return at >= 0 and len(avif) > at + 6 and bool(avif[at + 6] & 0x40)
