"""Pixels of every colour mode as RGB or RGBA: converted where that is right, refused where it cannot be."""

from io import BytesIO

from PIL import Image, ImageCms

from imaging.errors import UnsupportedPictureError
from imaging.metadata import colour_space

_MODE_NAMES = {
    "1": "black-and-white",
    "L": "grayscale",
    "LA": "grayscale",
    "I;16": "grayscale",
    "I;16B": "grayscale",
}
_MODE_NAMES |= {"P": "palette", "PA": "palette", "YCbCr": "YCbCr"}
_GRAY_MODES = {"1", "L", "LA"}
_DEEP_GRAY_MODES = {"I;16", "I;16B"}
_RGB_MODES = {"RGB", "RGBA", "RGBX", "P", "PA", "YCbCr"}


def usable_profile(mode: str, icc: bytes | None) -> tuple[bytes | None, list[str]]:
    """Return the profile that keeps describing the pixels once they are RGB, and notes on what happens to it.

    Args:
        mode: Pillow's mode of the file's pixels.
        icc: the embedded profile.

    Raises:
        UnsupportedPictureError: there is no right way from the mode to RGB.
    """
    space = colour_space(icc) if icc else None
    if mode == "CMYK":
        if space != "CMYK":
            raise UnsupportedPictureError(
                "is CMYK without a colour profile; export it as RGB (sRGB) and try again"
            )
        return None, ["converted from CMYK to sRGB through its colour profile"]
    if mode not in _GRAY_MODES | _RGB_MODES | _DEEP_GRAY_MODES:
        raise UnsupportedPictureError(
            f"has the colour mode {mode}, which cannot be kept; export it as RGB, 8 or 16 bits per channel"
        )
    notes = [f"the {_MODE_NAMES[mode]} picture is written as RGB"] if mode in _MODE_NAMES else []
    if space == "GRAY" and mode in _GRAY_MODES:
        return None, [*notes, "its gray values were converted to sRGB through its colour profile"]
    if space not in ("RGB", None):
        return None, [
            *notes,
            f"its colour profile ({space or 'damaged'}) does not fit its pixels and was dropped",
        ]
    return icc, notes


def to_rgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Return one frame as RGB, or RGBA when it has any kind of transparency.

    Args:
        image: the loaded frame.
        icc: the file's profile, needed for CMYK and for gray values with a curve of their own.

    Raises:
        UnsupportedPictureError: see `usable_profile`, which also judges later frames here.
    """
    usable_profile(image.mode, icc)
    target = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode == "CMYK":
        return _to_srgb(image, icc)
    if image.mode in _GRAY_MODES and icc and colour_space(icc) == "GRAY":
        rgb = _to_srgb(image.convert("L"), icc)
        if target == "RGBA":
            rgb.putalpha(image.convert("RGBA").getchannel("A"))
        return rgb
    return image.convert(target)


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    try:
        converted = ImageCms.profileToProfile(
            image,
            BytesIO(icc or b""),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            # Precalculated tables are coarse in dark tones: up to 9 of 255 levels off.
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE,
        )
    except (ImageCms.PyCMSError, OSError) as error:
        raise UnsupportedPictureError(
            "has a colour profile that cannot be used; export it as RGB (sRGB) and try again"
        ) from error
    assert converted is not None
    return converted
