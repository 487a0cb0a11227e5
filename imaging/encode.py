"""From a Picture to the bytes of a file: lossless where the format allows, faithful elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imaging import deep, tiff, webp
from imaging.errors import MissingExtraError, UnsupportedPictureError
from imaging.formats import Format
from imaging.gif import indexed
from imaging.guards import encoding, quiet_pillow
from imaging.metadata import upright_exif
from imaging.picture import Picture

_LARGEST_SEGMENT = 65_000
"""A JPEG keeps EXIF, XMP and comment in one segment each, of 65,533 bytes with their headings."""

_HEIC_TILE = 1024
"""As cameras do; a single HEVC frame of 24 megapixels is more than libheif's own decoder can read back."""


def encode(picture: Picture, target: Format) -> tuple[bytes, tuple[str, ...]]:
    """Encode a picture and say what the format could not carry.

    Returns:
        The file's content, and one sentence per loss.

    Raises:
        UnsupportedPictureError: the format cannot hold the transparency, the frames, the size or the 16 bits.
        MissingExtraError: an optional package is needed.
        PictureWriteError: the encoder gave up.
    """
    _check_pixels(picture, target)
    with quiet_pillow(), encoding(target.name):
        carried, notes = _reduce(picture, target)
        return _ENCODERS[target.name](carried), tuple(notes)


def _check_pixels(picture: Picture, target: Format) -> None:
    name, carries = target.name, target.carries
    if "alpha" not in carries and not _is_opaque(picture):
        raise UnsupportedPictureError(f"has transparency, which {name} cannot keep; write PNG, WebP or TIFF")
    if "frames" not in carries and picture.frames > 1:
        raise UnsupportedPictureError(
            f"has {picture.frames} frames, which {name} cannot keep; write PNG or WebP"
        )
    if "durations" in carries and picture.frames > 1 and not picture.durations:
        raise UnsupportedPictureError(
            f"has {picture.frames} pages, which {name} would show as an animation; write TIFF"
        )
    if "deep" not in carries and picture.levels > 255:
        raise UnsupportedPictureError(f"has 16 bits per channel, which {name} cannot keep; write PNG or TIFF")
    if max(picture.height, picture.width) > target.largest:
        raise UnsupportedPictureError(
            f"has {picture.width} x {picture.height} px, and {name} ends at {target.largest}; write PNG"
        )


def _is_opaque(picture: Picture) -> bool:
    return picture.alpha is None or bool((picture.alpha == picture.levels).all())


def _reduce(picture: Picture, target: Format) -> tuple[Picture, list[str]]:
    """Take away what the format cannot hold, with a note on each loss."""
    lost: dict[str, Any] = {}
    notes = []
    for attribute, (nothing, meaning) in _METADATA.items():
        if getattr(picture, attribute) and attribute not in target.carries:
            lost[attribute] = nothing
            notes.append(f"{target.name} cannot keep {meaning}")
        elif target.name == "JPEG" and attribute in ("exif", "xmp") and _too_long(picture, attribute):
            lost[attribute] = nothing
            notes.append(f"JPEG cannot keep {meaning} of this length")
    if picture.exif and "exif" not in lost:
        lost["exif"] = _writable_exif(picture, target)
        notes += (
            [] if lost["exif"] else [f"the EXIF data is damaged and could not be written to {target.name}"]
        )
    text = tuple(each for each in picture.text if _keeps_text(each, target))
    if text != picture.text:
        names = ", ".join(sorted({key for key, _ in set(picture.text) - set(text)}))
        notes.append(f"{target.name} cannot keep the text fields {names}")
    if "alpha" not in target.carries:
        lost["alpha"] = None
    elif target.name == "GIF" and _is_translucent(picture):
        notes.append("GIF has no half-transparent pixels; they became opaque or hidden")
    if picture.colour_chunks and target.name != "PNG":
        lost["colour_chunks"] = ()
        if not picture.icc and any(name != b"sRGB" for name, _ in picture.colour_chunks):
            notes.append(
                f"{target.name} cannot keep PNG's gamma and primaries, so colours may look different"
            )
    return replace(picture, text=text, **lost), notes


_METADATA: dict[str, tuple[Any, str]] = {
    "icc": (None, "the colour profile, so colours may look different"),
    "exif": (None, "EXIF data"),
    "xmp": (None, "XMP data"),
    "dpi": (None, "the resolution in dpi"),
    "durations": ((), "the durations of frames"),
    "plays": (0, "how often an animation is shown"),
}


def _too_long(picture: Picture, attribute: str) -> bool:
    return len(getattr(picture, attribute) or b"") > _LARGEST_SEGMENT


def _writable_exif(picture: Picture, target: Format) -> bytes | None:
    try:
        exif = upright_exif(picture.exif or b"")  # a block from elsewhere must not turn the picture again
        if target.name in ("TIFF", "AVIF"):  # the two whose encoders take EXIF apart
            tiff.tags_from(replace(picture, exif=exif)).tobytes()
    except Exception:
        # What damaged EXIF raises is as various as what damaged pixels do.
        return None
    return exif


def _keeps_text(item: tuple[str, str], target: Format) -> bool:
    key, text = item
    comment = "comment" in target.carries and key == "Comment" and len(text) <= _LARGEST_SEGMENT
    return "text" in target.carries or comment


def _is_translucent(picture: Picture) -> bool:
    alpha = picture.alpha
    return alpha is not None and bool(((alpha > 0) & (alpha < picture.levels)).any())


def _encode_png(picture: Picture) -> bytes:
    info = PngInfo()
    for name, content in picture.colour_chunks:
        info.add(name, content)
    for key, text in picture.text:
        info.add_text(key, text)
    if picture.xmp:
        # As one uncompressed iTXt chunk; PngInfo.add_itxt would insist on decoding the packet.
        info.add(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + picture.xmp)
    options = {"pnginfo": info, "exif": picture.exif, "icc_profile": picture.icc, "dpi": picture.dpi}
    if picture.levels > 255:
        return deep.encode_png(_array(picture, 0), _saved(Image.new("RGB", (1, 1)), "PNG", options))
    if picture.frames > 1:
        # Every frame replaces its rectangle, whatever its alpha is.
        options |= {"duration": list(picture.durations), "loop": picture.plays, "disposal": 0, "blend": 0}
    return _saved_frames(picture, "PNG", options)


def _encode_jpeg(picture: Picture) -> bytes:
    options = {
        "quality": 95,
        "subsampling": 0,
        "icc_profile": picture.icc,
        "xmp": picture.xmp,
        "dpi": picture.dpi,
    }
    exif = picture.exif and b"Exif\0\0" + picture.exif
    return _saved_frames(picture, "JPEG", options | {"exif": exif, "comment": _comment(picture)})


def _encode_webp(picture: Picture) -> bytes:
    # "exact" keeps the colours under transparent pixels, which the encoder would otherwise replace.
    options = {"lossless": True, "exact": True, "quality": 50, "method": 4}
    metadata = {"icc": picture.icc, "exif": picture.exif, "xmp": picture.xmp}
    if picture.frames == 1:
        metadata["icc_profile"] = metadata.pop("icc")
        return _saved_frames(picture, "WEBP", options | metadata)
    return webp.join_frames(
        [_saved(_image(picture, frame), "WEBP", options) for frame in range(picture.frames)],
        (picture.width, picture.height),
        picture.durations,
        plays=picture.plays,
        alpha=picture.alpha is not None,
        **metadata,
    )


def _encode_tiff(picture: Picture) -> bytes:
    pages = (_array(picture, frame) for frame in range(picture.frames))
    return tiff.encode_pages(pages, tiff.tags_from(picture))


def _encode_avif(picture: Picture) -> bytes:
    options = {"quality": 90, "subsampling": "4:4:4", "icc_profile": picture.icc, "xmp": picture.xmp}
    durations = {"duration": list(picture.durations)} if picture.frames > 1 else {}
    return _saved_frames(picture, "AVIF", options | durations | {"exif": picture.exif})


def _encode_heic(picture: Picture) -> bytes:
    try:
        pillow_heif = import_module("pillow_heif")
    except ImportError as error:
        raise MissingExtraError(
            "needs pillow-heif to become HEIC; run: pip install 'vernis[heic]'"
        ) from error
    image = _image(picture, 0)
    if picture.icc:
        image.info |= {"icc_profile": picture.icc, "icc_profile_type": "prof"}
    file = BytesIO()
    pillow_heif.from_pillow(image).save(
        file,
        quality=90,
        chroma=444,
        exif=picture.exif,
        xmp=picture.xmp,
        tile_size=_HEIC_TILE,
        enc_params={"preset": "medium"},  # many times faster than "slow", for 4 % more bytes
    )
    return file.getvalue()


def _encode_gif(picture: Picture) -> bytes:
    frames = [indexed(_array(picture, frame)) for frame in range(picture.frames)]
    options: dict[str, Any] = {"optimize": False, "comment": _comment(picture)}
    if len(frames) > 1:
        # Each frame clears its predecessor, so that hidden pixels stay hidden.
        options |= {
            "save_all": True,
            "append_images": frames[1:],
            "duration": list(picture.durations),
            "disposal": 2,
        }
        if picture.plays != 1:
            options["loop"] = max(picture.plays - 1, 0)  # GIF counts repetitions, not showings
    return _saved(frames[0], "GIF", options)


def _encode_bmp(picture: Picture) -> bytes:
    return _saved_frames(picture, "BMP", {"dpi": picture.dpi})


def _comment(picture: Picture) -> bytes | None:
    return next((text.encode("latin-1", "replace") for key, text in picture.text if key == "Comment"), None)


def _saved_frames(picture: Picture, format: str, options: dict[str, Any]) -> bytes:
    first, *others = (_image(picture, frame) for frame in range(picture.frames))
    return _saved(first, format, options | ({"save_all": True, "append_images": others} if others else {}))


def _saved(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    file = BytesIO()
    image.save(file, format, **{name: value for name, value in options.items() if value is not None})
    return file.getvalue()


def _image(picture: Picture, frame: int) -> Image.Image:
    return Image.fromarray(_array(picture, frame))


def _array(picture: Picture, frame: int) -> UInt[np.ndarray, "height width channels"]:
    """Return one frame as [height, width, 3 or 4]."""
    planes = picture.integers[frame]
    if picture.alpha is not None:
        planes = torch.cat([planes, picture.alpha[frame]])
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())


_ENCODERS: dict[str, Callable[[Picture], bytes]] = {
    "PNG": _encode_png,
    "JPEG": _encode_jpeg,
    "WEBP": _encode_webp,
    "TIFF": _encode_tiff,
    "AVIF": _encode_avif,
    "HEIC": _encode_heic,
    "GIF": _encode_gif,
    "BMP": _encode_bmp,
}
