"""Where a visitor's files lie while he is there, and how they are called; nothing stays when he has left."""

import os
import shutil
import tempfile
import threading
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imaging.batch.discover import Job, Plan, result_name
from imaging.whole import whole

_LONGEST_STEM = 120
"""Bytes of UTF-8; file systems allow 255 for a whole name."""


class Desk:
    """A folder of one visitor: the results of his last run and what is shown of them.

    Sketches are drawn beside his run, so what is shown is neither written nor taken away by two at once.
    """

    def __init__(self, root: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="desk-", dir=root))
        self._lock = threading.Lock()

    def cleared(self) -> "Desk":
        """Take everything off the desk and return it."""
        with self._lock:
            for entry in self.folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        return self

    def plan(self, uploads: Iterable[str | os.PathLike[str]], *, label: str) -> Plan:
        """Plan one job for each upload; results get names of their own, also for two uploads of one name."""
        jobs, taken = [], set()
        for upload in map(Path, uploads):
            stem = unique(safe_stem(upload.name), taken)
            jobs.append(Job(upload, self.folder / "results" / result_name(stem, label)))
        return Plan(jobs)

    def zipped(self, files: Sequence[str | os.PathLike[str]], name: str) -> Path:
        """Pack files, byte for byte, into one archive on the desk. Raises OSError."""
        archive = self.folder / name
        with whole(archive) as partial, zipfile.ZipFile(partial, "w", strict_timestamps=False) as packed:
            for file in map(Path, files):
                packed.write(file, file.name)
        return archive

    @contextmanager
    def showing(self, name: str) -> Iterator[Path]:
        """Yield the path to write something to that is to be shown.

        Raises FileNotFoundError if the desk is removed.
        """
        with self._lock:
            shown = self.folder / "shown"
            shown.mkdir(exist_ok=True)
            yield shown / name

    def remove(self) -> None:
        """Delete the desk with all that lies on it."""
        with self._lock:
            shutil.rmtree(self.folder, ignore_errors=True)


def safe_stem(name: str) -> str:
    """Return the stem of a stranger's file name as one that is safe in folders, archives and headers.

    Letters of every script, digits, marks, spaces and harmless signs stay; control and direction characters,
    quotes, separators and leading dots go.
    """
    stem = Path(name.replace("\\", "/")).stem
    kept = "".join(each if _harmless(each) else "_" for each in stem).strip(" .")
    cut = kept.encode(errors="ignore")[:_LONGEST_STEM].decode(errors="ignore").strip(" .")
    return cut or "picture"


def _harmless(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind[0] in "LMN" or kind == "So" or character in " -_.()+,&"


def unique(stem: str, taken: set[str]) -> str:
    """Return `stem`, numbered if it is among those `taken`, and put it there; case does not tell apart."""
    candidate, number = stem, 1
    while candidate.casefold() in taken:
        number += 1
        candidate = f"{stem} ({number})"
    taken.add(candidate.casefold())
    return candidate
