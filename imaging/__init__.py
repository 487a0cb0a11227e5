"""Files and pictures: reading, writing, tiling, transforming and measuring them; nothing of models.

Only what needs neither torch nor Pillow is exported here, so that a command line starts at once:
`imaging.io` reads and writes, `imaging.quantize` rounds, `imaging.tiles` cuts large pictures,
`imaging.transforms` holds what happens to pictures on the way, `imaging.metrics` and `imaging.perceptual`
compare them.
"""

from imaging.errors import (
    DamagedPictureError,
    MissingExtraError,
    PictureError,
    PictureSizeError,
    PictureWriteError,
    UnsupportedPictureError,
)
from imaging.formats import PICTURE_SUFFIXES, is_lossless

__all__ = [
    "PICTURE_SUFFIXES",
    "DamagedPictureError",
    "MissingExtraError",
    "PictureError",
    "PictureSizeError",
    "PictureWriteError",
    "UnsupportedPictureError",
    "is_lossless",
]
