"""Frames in 256 colours for GIF: exact when a frame has no more, and the nearest palette otherwise."""

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

_OPAQUE_FROM = 128
"""GIF knows only shown and hidden pixels; this alpha value and larger ones are shown."""


def indexed(pixels: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    """Return uint8 pixels [height, width, 3 or 4] as a palette image; hidden ones get the last index."""
    colours = pixels[..., :3]
    hidden = pixels[..., 3] < _OPAQUE_FROM if pixels.shape[2] == 4 else np.zeros(pixels.shape[:2], bool)
    room = 255 if hidden.any() else 256
    packed = colours.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    found = np.unique(packed[~hidden])
    image = _exact(packed, found) if len(found) <= room else Image.fromarray(colours).quantize(room)
    if room == 256:
        return image
    indices = np.array(image)
    indices[hidden] = 255
    marked = Image.fromarray(indices, "P")
    marked.putpalette((image.getpalette() or []) + [0] * (768 - len(image.getpalette() or [])))
    marked.info["transparency"] = 255
    return marked


def _exact(packed: Int32[np.ndarray, "height width"], found: Int32[np.ndarray, " colours"]) -> Image.Image:
    indices = np.searchsorted(found, packed).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette([int(each) >> shift & 255 for each in found for shift in (16, 8, 0)])
    return image
