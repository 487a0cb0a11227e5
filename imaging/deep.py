"""Pictures with 16 bits per channel, which Pillow would cut down to 8 unsaid, through libvips."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import UInt16
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from imaging.errors import DamagedPictureError, MissingExtraError, UnsupportedPictureError
from imaging.guards import one_line
from imaging.metadata import PNG_SIGNATURE, colour_space, png_chunk, png_chunks

DeepPixels = UInt16[np.ndarray, "height width channels"]

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 338, 339
_UNSPECIFIED, _MULTIPLIED_ALPHA, _STRAIGHT_ALPHA = 0, 1, 2
# What a TIFF's photometric interpretation stands for, and with how many channels it can be read.
_COLOURS = {
    0: ("grayscale", (1,)),
    1: ("grayscale", (1,)),
    2: ("RGB", (3, 4)),
    3: ("palette", (1,)),
    5: ("CMYK", (4,)),
    6: ("YCbCr", (3,)),
    8: ("Lab", ()),
}
_MOST_BITS = 64
# Which channels make RGB or RGBA, by their number: gray, gray and alpha, RGB, RGBA.
_RGB_FROM = {1: [0, 0, 0], 2: [0, 0, 0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3]}


def bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Return how many bits a PNG or TIFF stores per channel, and 8 for every other format."""
    if image.format == "PNG":
        return data[24]
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    return 8


def check_supported(image: Image.Image, bits: int, frames: int) -> None:
    """Refuse what cannot be kept exactly.

    Raises:
        UnsupportedPictureError: floating-point, signed or 32-bit values, several frames, CMYK, Lab.
    """
    if isinstance(image, TiffImageFile):
        check_layout(image.tag_v2)
    if frames > 1:
        raise UnsupportedPictureError(f"has {frames} frames of 16 bits per channel; export it with 8 bits")
    if colour_space(image.info.get("icc_profile") or b"") == "GRAY":
        raise UnsupportedPictureError("is 16-bit grayscale with a curve of its own; export it as RGB")
    if image.mode not in ("RGB", "RGBA", "I;16", "I;16B"):
        raise UnsupportedPictureError(f"is {image.mode} with 16 bits per channel; export it as RGB")


def check_layout(tags: Mapping[int, Any]) -> None:
    """Refuse a TIFF by its tags; those that contradict each other pass, for the file is damaged then.

    Raises:
        UnsupportedPictureError: floating-point, signed or 32-bit values, channels beyond RGBA.
    """
    bits, channels = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLES_PER_PIXEL, 1)
    depth = max(bits)
    if len(bits) not in (1, channels) or min(bits) != depth or depth > _MOST_BITS:
        return
    if set(tags.get(_SAMPLE_FORMAT, (1,))) != {1}:
        raise UnsupportedPictureError(
            f"stores signed or floating-point values of {depth} bits; export it with 8 or 16 unsigned bits"
        )
    if depth == 16 and _MULTIPLIED_ALPHA in tags.get(_EXTRA_SAMPLES, ()):
        raise UnsupportedPictureError("has 16-bit colours multiplied by alpha; export it with straight alpha")
    if depth not in (1, 2, 4, 8, 16):
        raise UnsupportedPictureError(f"stores {depth} bits per channel; export it with 8 or 16 bits")
    colours, known = _COLOURS.get(tags.get(_PHOTOMETRIC, 0), ("", ()))
    if colours and channels not in known:
        raise UnsupportedPictureError(
            f"is {colours} with {channels} channels of {depth} bits; export it as RGB or RGBA"
        )


def drops_channels(image: Image.Image, bits: int) -> bool:
    """Say whether a TIFF has channels beyond its colours that it does not declare to be transparency.

    Such a channel is a saved selection more often than not; as alpha it would hide what was not selected.
    """
    if not isinstance(image, TiffImageFile):
        return False
    extra = image.tag_v2.get(_EXTRA_SAMPLES, ())
    # Pillow, which decodes 8 bits, takes a fourth channel without any declaration for alpha.
    undeclared = bits > 8 and image.mode == "RGBA" and _STRAIGHT_ALPHA not in extra
    return _UNSPECIFIED in extra or undeclared


def read_pixels(data: bytes, format: str, *, alpha: bool) -> DeepPixels:
    """Decode a 16-bit PNG or TIFF to RGB or RGBA, without applying its orientation.

    Args:
        data: the whole file.
        format: PNG or TIFF.
        alpha: whether a channel beyond the colours is transparency; it is dropped otherwise.

    Raises:
        MissingExtraError: libvips is not installed.
        DamagedPictureError: libvips cannot decode the file.
    """
    vips = _libvips()
    load = vips.Image.pngload_buffer if format == "PNG" else vips.Image.tiffload_buffer
    try:
        pixels = np.atleast_3d(load(data, fail_on="error").numpy())
    except vips.Error as error:
        raise DamagedPictureError(f"is damaged or cut off ({one_line(error)})") from error
    if pixels.dtype != np.uint16 or pixels.shape[2] > 4:
        raise UnsupportedPictureError(
            f"has {pixels.shape[2]} channels of type {pixels.dtype}; export it as RGB"
        )
    channels = _RGB_FROM[pixels.shape[2]]
    return pixels[..., channels if alpha else channels[:3]]


def encode_png(pixels: DeepPixels, described: bytes) -> bytes:
    """Encode RGB or RGBA as a PNG with the metadata of another one.

    Args:
        pixels: uint16 [height, width, 3 or 4].
        described: a PNG, of any content, whose chunks other than the pixels' are taken over.
    """
    vips = _libvips()
    height, width, bands = pixels.shape
    image = vips.Image.new_from_memory(np.ascontiguousarray(pixels).data, width, height, bands, "ushort")
    encoded = image.copy(interpretation="rgb16").pngsave_buffer(bitdepth=16, filter="all", keep="none")
    own = [chunk for chunk in png_chunks(encoded) if chunk[0] in (b"IHDR", b"IDAT", b"IEND")]
    taken = [chunk for chunk in png_chunks(described) if chunk[0] not in (b"IHDR", b"IDAT", b"IEND")]
    return PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in [own[0], *taken, *own[1:]])


def _libvips() -> Any:
    try:
        return import_module("pyvips")
    except (ImportError, OSError) as error:
        raise MissingExtraError(
            "has 16 bits per channel, which need libvips; run: pip install 'vernis[pro]'"
        ) from error
