"""Room for a result is made sure of before the work that makes it."""

import shutil
import tempfile
from pathlib import Path


def check_writable(path: Path, *, at_least: int = 0) -> None:
    """Make sure, before any work, that a file can be made at `path` and that there is some room for it.

    Raises OSError with a sentence.
    """
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if path.is_dir():
        raise IsADirectoryError(f"the output {path} is a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise PermissionError(f"cannot write into {folder} ({error.strerror})") from error
    if free < at_least:
        raise OSError(
            f"the disk of {folder} is full: {free / 1e6:.1f} MB free, {at_least / 1e6:.1f} MB or more needed"
        )
