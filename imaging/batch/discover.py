"""Which files a run takes and where each result goes, decided and checked before any work."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imaging.formats import PICTURE_SUFFIXES, format_of

LABELS = ("protected", "purified")
"""What stands before the suffix of outputs that we name."""


class PlanError(ValueError):
    """Inputs and outputs that cannot all be right, so that nothing is started."""


@dataclass(frozen=True)
class Job:
    """One picture file to read and the file to write."""

    input: Path
    output: Path


@dataclass(frozen=True)
class Problem:
    """An input of which no job could be made."""

    input: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, in order."""

    jobs: list[Job] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    """Outputs of earlier runs that lay among the inputs."""


@dataclass(frozen=True)
class Found:
    """A picture file that an input stands for."""

    path: Path
    root: Path
    """The folder below which a mirrored tree begins."""
    named: bool
    """Whether a person wrote this very path."""


def plan(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    recursive: bool = False,
    label: str = "protected",
) -> Plan:
    """Resolve files, folders and glob patterns into jobs.

    A folder stands for the pictures in it, by suffix and without hidden files; with `recursive` also for
    those below. Outputs of earlier runs under this label are left out unless one is the only input, so that
    `protect *.png` can be repeated. A file that is reached twice counts once. What is missing or empty
    becomes a problem of its own and stops nothing else.

    Args:
        inputs: paths and patterns; a path that exists is never read as a pattern.
        out: for a single file the name of its result. Otherwise, or when it is a folder or ends in a slash,
            the folder that receives `NAME.LABEL.png`, with the tree below an input folder mirrored.
            Without it results lie beside their inputs.
        recursive: descend into folders.
        label: what results are called, one of `LABELS`.

    Raises:
        PlanError: two inputs would become one file, a result would replace an input, or `out` cannot serve.
        imaging.UnsupportedPictureError: `out` names a file of no picture format.
    """
    texts = list(dict.fromkeys(os.fspath(each) for each in inputs))
    result, found = Plan(), {}
    for text in texts:
        matches, reason = resolve(text, recursive)
        fresh = [
            each for each in matches if not is_output(each.path, label) or (each.named and len(texts) == 1)
        ]
        result.left_out.extend(each.path for each in matches if each not in fresh)
        if reason or not matches:
            result.problems.append(Problem(text, reason or "holds no pictures"))
        for each in fresh:
            found.setdefault(os.path.realpath(each.path), each)
    name = _single_output(out, texts, list(found.values()))
    result.jobs.extend(Job(each.path, name or _output(each, out, label)) for each in found.values())
    check_collisions(result.jobs)
    return result


def result_name(stem: str, label: str = "protected") -> str:
    """Return what the result of a file is called; `is_output` knows it again."""
    return f"{stem}.{label}.png"


def both_to_one(one: object, other: object, output: object, *, flag: str = "--out") -> str:
    """Say that two inputs would become one file."""
    return (
        f"{one} and {other} would both be written to {output};"
        f" take them one after the other, each with its own {flag}"
    )


def is_output(path: Path, label: str = "protected") -> bool:
    """Say whether a file is called as outputs of this label are: `NAME.protected.SUFFIX`."""
    return path.stem.lower().endswith(f".{label}")


def resolve(text: str, recursive: bool) -> tuple[list[Found], str | None]:
    """Return the pictures that a file, folder or pattern stands for, and why there are none.

    The reason is None for a folder without pictures, too.
    """
    path = Path(text)
    if not text:  # which Path would take for the current folder
        return [], "is an empty name"
    try:
        if path.is_dir():
            return [Found(each, path, named=False) for each in _pictures_in(path, recursive)], None
        if path.is_file():
            return [Found(path, path.parent, named=True)], None
        if path.exists():
            return [], "is neither a file nor a folder"
        if glob.has_magic(text):
            return _matches(text, recursive)
    except OSError as error:
        return [], f"cannot be read ({error.strerror})"
    return [], "is a link that leads nowhere" if path.is_symlink() else "does not exist"


def _matches(pattern: str, recursive: bool) -> tuple[list[Found], str | None]:
    paths = [Path(each) for each in sorted(glob.glob(pattern, recursive=True))]
    root = _fixed_part(pattern)
    files = [each for each in paths if each.is_file() and each.suffix.lower() in PICTURE_SUFFIXES]
    folders = [each for each in paths if each.is_dir() and "**" not in pattern]
    files += [picture for folder in folders for picture in _pictures_in(folder, recursive)]
    return [Found(each, root, named=False) for each in files], None if files else "matches no pictures"


def _fixed_part(pattern: str) -> Path:
    parts = Path(pattern).parts
    magic = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:magic])


def _pictures_in(folder: Path, recursive: bool) -> Iterator[Path]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        if entry.is_file() and Path(entry.name).suffix.lower() in PICTURE_SUFFIXES:
            yield Path(entry.path)
    for entry in visible if recursive else ():
        # A link to a folder may lead back up, and what it leads to is reached on its own way or not meant.
        if entry.is_dir(follow_symlinks=False):
            yield from _pictures_in(Path(entry.path), recursive)


def _single_output(out: str | os.PathLike[str] | None, texts: list[str], found: list[Found]) -> Path | None:
    """The path that `out` gives to the only result, or None when results are named after their inputs."""
    if out is None:
        return None
    text, path = os.fspath(out), Path(out)
    folder = path.is_dir() or text.endswith(("/", os.sep)) or not path.suffix
    if folder and path.exists() and not path.is_dir():
        raise PlanError(f"--out {text} is a file; name a folder that exists or is to be made")
    if folder:
        return None
    if len(texts) != 1 or not all(each.named for each in found):
        raise PlanError(
            f"--out {text} names one file for several inputs; name a folder (end it with a slash)"
        )
    format_of(path)
    return path


def _output(found: Found, out: str | os.PathLike[str] | None, label: str) -> Path:
    name = result_name(found.path.stem, label)
    if out is None:
        return found.path.with_name(name)
    return Path(out) / found.path.relative_to(found.root).with_name(name)


def check_collisions(jobs: Sequence[Job], *, flag: str = "--out") -> None:
    """Make sure that no two results are one file, and that none is an input.

    Args:
        jobs: inputs and outputs.
        flag: what a person chooses outputs by.

    Raises PlanError.
    """
    owners: dict[str, Path] = {}
    inputs = {_identity(job.input): job.input for job in jobs}
    for job in jobs:
        place = os.path.normcase(os.path.realpath(job.output))
        if place in owners:
            raise PlanError(both_to_one(owners[place], job.input, job.output, flag=flag))
        owners[place] = job.input
        identity = _identity(job.output)
        if identity is not None and (replaced := inputs.get(identity)):
            raise PlanError(
                f"the result {job.output} would replace the input {replaced}; choose another {flag}"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
