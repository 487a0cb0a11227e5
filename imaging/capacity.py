"""What a format can hold of a picture: lost pixels are refused, lost metadata is left out and said."""

from dataclasses import replace
from typing import Any

from imaging import tiff
from imaging.errors import UnsupportedPictureError
from imaging.formats import Format
from imaging.metadata import upright_exif
from imaging.picture import Picture

_LARGEST_SEGMENT = 65_000
"""A JPEG keeps EXIF, XMP and comment in one segment each, of 65,533 bytes with their headings."""

_METADATA: dict[str, tuple[Any, str]] = {
    "icc": (None, "the colour profile, so colours may look different"),
    "exif": (None, "EXIF data"),
    "xmp": (None, "XMP data"),
    "dpi": (None, "the resolution in dpi"),
    "durations": ((), "the durations of frames"),
    "plays": (0, "how often an animation is shown"),
}
"""For each attribute of a picture that a format may lack: its empty value and its name in a note."""


def check_pixels(picture: Picture, target: Format) -> None:
    """Make sure that the format holds every pixel of the picture.

    Raises:
        UnsupportedPictureError: it lacks transparency, frames, 16 bits or the size.
    """
    name, carries, frames = target.name, target.carries, picture.frames
    if "alpha" not in carries and not _is_opaque(picture):
        raise UnsupportedPictureError(f"has transparency, which {name} cannot keep; write PNG, WebP or TIFF")
    if "frames" not in carries and frames > 1:
        raise UnsupportedPictureError(f"has {frames} frames, which {name} cannot keep; write PNG or WebP")
    if "durations" in carries and frames > 1 and not picture.durations:
        raise UnsupportedPictureError(f"has {frames} pages, and {name} would animate them; write TIFF")
    if "deep" not in carries and picture.levels > 255:
        raise UnsupportedPictureError(f"has 16 bits per channel, which {name} cannot keep; write PNG or TIFF")
    if max(picture.height, picture.width) > target.largest:
        size = f"{picture.width} x {picture.height} px"
        raise UnsupportedPictureError(f"has {size}, and {name} ends at {target.largest}; write PNG")


def _is_opaque(picture: Picture) -> bool:
    return picture.alpha is None or bool((picture.alpha == picture.levels).all())


def reduce_metadata(picture: Picture, target: Format) -> tuple[Picture, list[str]]:
    """Take away what the format cannot hold beside the pixels, with a note on each loss."""
    lost, notes = _missing_attributes(picture, target)
    if picture.exif and "exif" not in lost:
        lost["exif"] = _writable_exif(picture, target)
        if lost["exif"] is None:
            notes.append(f"the EXIF data is damaged and could not be written to {target.name}")
    lost["text"] = tuple(item for item in picture.text if _keeps_text(item, target))
    if left_out := set(picture.text) - set(lost["text"]):
        names = ", ".join(sorted({key for key, _ in left_out}))
        notes.append(f"{target.name} cannot keep the text fields {names}")
    if "alpha" not in target.carries:
        lost["alpha"] = None
    elif target.name == "GIF" and _is_translucent(picture):
        notes.append("GIF has no half-transparent pixels; they became opaque or hidden")
    if target.name != "PNG":
        lost["colour_chunks"] = ()
        if not picture.icc and any(name != b"sRGB" for name, _ in picture.colour_chunks):
            notes.append(f"{target.name} cannot keep the gamma of a PNG, so colours may look different")
    return replace(picture, **lost), notes


def _missing_attributes(picture: Picture, target: Format) -> tuple[dict[str, Any], list[str]]:
    lost: dict[str, Any] = {}
    notes: list[str] = []
    for attribute, (nothing, meaning) in _METADATA.items():
        value = getattr(picture, attribute)
        too_long = (
            target.name == "JPEG" and attribute in ("exif", "xmp") and len(value or b"") > _LARGEST_SEGMENT
        )
        if value and (attribute not in target.carries or too_long):
            lost[attribute] = nothing
            notes.append(f"{target.name} cannot keep {meaning}{' of this length' if too_long else ''}")
    return lost, notes


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
    if "text" in target.carries:
        return True
    key, text = item
    fits = len(text) <= _LARGEST_SEGMENT and all(ord(character) < 256 for character in text)
    return "comment" in target.carries and key == "Comment" and fits


def _is_translucent(picture: Picture) -> bool:
    alpha = picture.alpha
    return alpha is not None and bool(((alpha > 0) & (alpha < picture.levels)).any())
