"""Which files a run of `detect` takes, and where a heatmap of each would go.

`imaging.batch.discover` plans a result beside every input and refuses two inputs of one name, as `a.png` and
`a.jpg`; here there are no such results, and both are to be answered.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from imaging.batch.discover import Job, Plan, Problem, is_output
from imaging.formats import PICTURE_SUFFIXES

LABEL = "heatmap"
"""What stands before the suffix of heatmaps, which are no inputs."""


def pictures_of(
    inputs: Sequence[str], *, recursive: bool = False, heatmaps: str | os.PathLike[str] = "."
) -> Plan:
    """Resolve files, folders and glob patterns into jobs.

    A folder stands for the pictures in it, by suffix and without hidden files; with `recursive` also for
    those below. A file that is reached twice counts once. Heatmaps of earlier runs are left out, unless one
    is named itself. What is missing or empty becomes a problem and stops nothing else.
    """
    plan, seen = Plan(), set()
    for text in dict.fromkeys(inputs):
        named = bool(text) and Path(text).is_file()
        root, found = (Path(text).parent, [Path(text)]) if named else _resolve(text, recursive)
        if not found:
            plan.problems.append(Problem(text, _why_none(text)))
        for path in found:
            place = os.path.realpath(path)
            if not named and is_output(path, LABEL):
                plan.left_out.append(path)
            elif place not in seen:
                seen.add(place)
                beside = path.relative_to(root)
                plan.jobs.append(Job(path, Path(heatmaps) / beside.with_name(f"{beside.name}.{LABEL}.png")))
    return plan


def _resolve(text: str, recursive: bool) -> tuple[Path, list[Path]]:
    """The folder that names are kept relative to, and the pictures that a folder or a pattern stands for."""
    path = Path(text)
    if text and path.is_dir():
        return path, list(_pictures_in(path, recursive))
    if not glob.has_magic(text):
        return path, []
    matches = [Path(each) for each in sorted(glob.glob(text, recursive=True))]
    fixed = next(number for number, part in enumerate(path.parts) if glob.has_magic(part))
    pictures = [each for each in matches if each.is_file() and each.suffix.lower() in PICTURE_SUFFIXES]
    return Path(*path.parts[:fixed]), pictures


def _pictures_in(folder: Path, recursive: bool) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):  # links to folders are not followed
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES:
                yield Path(where) / name


def _why_none(text: str) -> str:
    if not text:
        return "is an empty name"
    path = Path(text)
    if path.is_dir():
        return "holds no pictures"
    if path.exists():
        return "is neither a file nor a folder"
    return "matches no pictures" if glob.has_magic(text) else "does not exist"
