"""Fences around Pillow: its pixel limit, its warnings and the many exceptions of damaged files, contained."""

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from imaging.errors import DamagedPictureError, PictureError, PictureSizeError, PictureWriteError

# Pillow keeps its pixel limit and log, and Python its warning filters, in globals of the process.
_process_globals = threading.RLock()
_pillow_log, _nowhere = logging.getLogger("PIL"), logging.NullHandler()


@contextmanager
def quiet_pillow() -> Iterator[list[str]]:
    """Collect warnings as messages, swallow Pillow's log and lift its pixel limit for a while.

    The list is filled when the block ends, and Pillow's limit is put back. One thread enters at a time.
    """
    messages: list[str] = []
    with _process_globals, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _pillow_log.addHandler(_nowhere)  # a log that nobody has configured goes to stderr
        try:
            yield messages
        finally:
            Image.MAX_IMAGE_PIXELS = before
            _pillow_log.removeHandler(_nowhere)
            messages.extend(one_line(each.message) for each in caught if each.category is UserWarning)


@contextmanager
def quiet_libtiff() -> Iterator[None]:
    """Hold back what libtiff, inside Pillow, prints about a damaged file on the process's own stderr."""
    try:
        stderr = os.dup(2)
    except OSError:  # the process has none, so nothing can be printed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@contextmanager
def decoding() -> Iterator[None]:
    """Turn whatever a decoder raises into a PictureError without the file's name."""
    try:
        yield
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureSizeError("is too large: one of its frames or tiles is larger than the limit") from error
    except MemoryError as error:
        raise PictureSizeError("does not fit into this computer's memory") from error
    except Exception as error:
        # Damaged bytes make Pillow fail in any way there is: SyntaxError, KeyError, struct.error, …
        raise DamagedPictureError(f"is damaged or cut off ({one_line(error)})") from error


@contextmanager
def encoding(name: str) -> Iterator[None]:
    """Turn whatever an encoder raises into a PictureWriteError without the file's name."""
    try:
        yield
    except PictureError:
        raise
    except MemoryError as error:
        raise PictureWriteError("does not fit into this computer's memory while it is encoded") from error
    except Exception as error:
        # Encoders report limits of their formats through as many types as decoders do.
        raise PictureWriteError(f"cannot be encoded as {name} ({one_line(error)})") from error


def one_line(error: object) -> str:
    """Return a message without line breaks, at most 200 characters long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
