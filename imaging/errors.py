"""What can go wrong with a picture file, as one documented tree.

    PictureError(ValueError)
    ├── UnsupportedPictureError   a format, colour mode or bit depth that cannot be kept faithfully
    ├── DamagedPictureError       the bytes are broken, cut off, empty or not a picture
    ├── PictureSizeError          too small, or larger than the limit
    ├── MissingExtraError         an optional package is needed; the message names the command
    └── PictureWriteError         the file exists already, the folder is missing, the disk is full

Every message is one line that starts with the file's name.
"""


class PictureError(ValueError):
    """A picture cannot be read or written; also raised itself for a missing file or a folder."""


class UnsupportedPictureError(PictureError):
    """The format, colour mode or bit depth cannot be kept faithfully, so nothing is done."""


class DamagedPictureError(PictureError):
    """The file is empty, cut off, damaged, or holds something that is no picture."""


class PictureSizeError(PictureError):
    """The picture is smaller than a protection can use or larger than the limit."""


class MissingExtraError(PictureError):
    """The file needs an optional package that is not installed."""


class PictureWriteError(PictureError):
    """The file cannot be written; no partial file is left behind."""
