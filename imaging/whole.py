"""Files that are there whole or not at all."""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2s
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path` to write to; the file takes its place if nothing is raised.

    Raises OSError.
    """
    partial = path.with_name(f".{_mark(os.getpid())}-{secrets.token_hex(8)}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises OSError."""
    with whole(path) as partial:
        partial.write_text(text)


def sweep(folder: Path, process: int) -> None:
    """Remove what a process of this computer, which was killed, has left half-written in a folder."""
    for partial in folder.glob(f".{_mark(process)}-*.part"):
        partial.unlink(missing_ok=True)


def _mark(process: int) -> str:
    # of the computer, too: several may write into one folder
    return blake2s(f"{socket.gethostname()} {process}".encode(), digest_size=6).hexdigest()
