"""From a Picture to the bytes of a file: lossless where the format allows, faithful elsewhere."""

from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imaging import deep, tiff, webp
from imaging.capacity import check_pixels, reduce_metadata
from imaging.errors import MissingExtraError
from imaging.formats import Format
from imaging.gif import indexed
from imaging.guards import encoding, quiet_pillow
from imaging.picture import Picture

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
    check_pixels(picture, target)
    with quiet_pillow(), encoding(target.name):
        reduced, notes = reduce_metadata(picture, target)
        return _ENCODERS[target.name](reduced), tuple(notes)


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
    # "exact" keeps the colours under transparent pixels, which the encoder would otherwise replace; "quality"
    # is the effort of a lossless encoder.
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
    return next((text.encode("latin-1") for key, text in picture.text if key == "Comment"), None)


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
