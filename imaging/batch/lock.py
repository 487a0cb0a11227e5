"""One run at a time for each output, so that two runs over one folder share the work and never clobber.

The lock is the kernel's own, on a hidden file beside the output. It is taken in one step, and it ends with
the process that has it, however that dies; so a file that a killed run left behind locks nothing, and there
is nothing to look after. It reaches as far as the filesystem's locks do: between computers over NFS, not
between those that write to an object store.
"""

import errno
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TAKEN = frozenset({errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK})
_NO_LOCKS = frozenset({errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL})
_PAUSE = 0.5
"""Seconds between two looks at a lock that another run has."""


@contextmanager
def locked(output: Path) -> Iterator[bool]:
    """Take an output for as long as the block runs, and yield whether it is ours; nobody waits.

    Its folder is made. On a filesystem that has no locks every output is ours.

    Args:
        output: what is going to be written; it need not exist.

    Raises OSError if no file can be made beside it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    # By a hash, since the name itself may be as long as names can be.
    name = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:16]
    path = output.with_name(f".{name}.lock")
    descriptor = _taken(path)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        if sys.platform == "win32":  # where an open file cannot be removed
            os.close(descriptor)
        with suppress(OSError):
            path.unlink()
        if sys.platform != "win32":  # elsewhere it goes while it is locked, so that it is surely ours
            os.close(descriptor)


@contextmanager
def waited_for(output: Path) -> Iterator[None]:
    """Take an output for as long as the block runs, after whoever has it now. Raises OSError as `locked`."""
    while True:
        with locked(output) as ours:
            if ours:
                yield
                return
        pause()


def pause() -> None:
    """Wait a moment before looking at a lock again."""
    time.sleep(_PAUSE)


def _taken(path: Path) -> int | None:
    """An open descriptor that holds the lock, or None if another one holds it."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            _lock(descriptor)
            # Whoever had it before may have removed the file after we opened it: then it is nobody's lock.
            if _is(descriptor, path):
                return descriptor
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor
            os.close(descriptor)
            if error.errno in _TAKEN:
                return None
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
