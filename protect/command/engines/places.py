"""Pictures at places that fsspec knows, such as `s3://bucket/art/`: found, fetched, and put back whole.

A `file://` URL is a path and treated as one. Others have no locks (`imaging.batch.lock`): two runs that write
to one such place may do the same work twice, and the second finds the first one's result there.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from imaging.batch import discover
from imaging.batch.discover import Job, PlanError, Problem
from imaging.formats import PICTURE_SUFFIXES, format_of


@dataclass(frozen=True)
class Errand:
    """One picture to read and the place of its result, each a path or a URL."""

    input: str
    output: str


@dataclass(frozen=True)
class Errands:
    """What a run is going to do, in order; as `discover.Plan`."""

    jobs: list[Errand] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    place: str
    relative: PurePosixPath
    """Where it lies below what was named."""
    named: bool


def is_url(text: str) -> bool:
    """Say whether a place is a URL and no path of this computer."""
    return "://" in text and not Path(text).exists()


def plan(inputs: Sequence[str], *, out: str | None = None, recursive: bool = False) -> Errands:
    """Resolve paths, patterns and URLs into errands, by the rules of `imaging.batch.discover.plan`.

    Args:
        inputs: files, folders and patterns, as paths or as URLs.
        out: a file for a single input, or the folder that mirrors the tree below each; a path or a URL.
        recursive: descend into folders.

    Raises:
        PlanError: two inputs would become one file, a result would replace an input, or `out` cannot serve.
        ValueError: fsspec knows no such URL, or lacks the package for it.
    """
    texts, out = list(dict.fromkeys(map(_path_of, inputs))), None if out is None else _path_of(out)
    if not any(map(is_url, [*texts, out or ""])):
        made = discover.plan(texts, out=out, recursive=recursive)
        errands = [Errand(str(job.input), str(job.output)) for job in made.jobs]
        return Errands(errands, made.problems, list(map(str, made.left_out)))
    result, found = Errands(), {}
    for text in texts:
        matches, reason = _listed(text, recursive) if is_url(text) else _resolved(text, recursive)
        fresh = [each for each in matches if not _is_output(each) or (each.named and len(texts) == 1)]
        result.left_out.extend(each.place for each in matches if each not in fresh)
        if reason or not matches:
            result.problems.append(Problem(text, reason or "holds no pictures"))
        found.update({each.place: found.get(each.place, each) for each in fresh})
    name = _single(out, texts, list(found.values()))
    result.jobs.extend(Errand(each.place, name or _output(each, out)) for each in found.values())
    _check_collisions(result.jobs)
    return result


@contextmanager
def staged(errand: Errand) -> Iterator[Job]:
    """Yield an errand as a job with files of this computer, for as long as the block runs.

    What is a path stays where it is. An input that is a URL is fetched; of an output that is one, the file
    that is there now is fetched, so that its mark can be read. `deliver` brings the result.

    Raises OSError, or what the filesystem raises for a place that it cannot read.
    """
    with TemporaryDirectory(prefix="vernis-") as folder:
        paths = []
        for side in ("input", "output"):
            place = getattr(errand, side)
            path = Path(place)
            if is_url(place):
                path = Path(folder, side) / _name(place)
                path.parent.mkdir()
                # A result is most often not there yet, while an input that is not there is a failure.
                if side == "input" or exists(place):
                    path.write_bytes(fetched(place))
            paths.append(path)
        yield Job(*paths)


def deliver(job: Job, errand: Errand, *, overwrite: bool) -> None:
    """Bring a finished result from where `staged` had it made to its place, whole or not at all.

    Raises FileExistsError if another file came there since and `overwrite` is not set, and OSError, or what
    the filesystem raises.
    """
    if not is_url(errand.output):
        return
    data = job.output.read_bytes()
    if not overwrite and exists(errand.output) and fetched(errand.output) != data:
        raise FileExistsError(f"{errand.output} came there meanwhile; --overwrite replaces it")
    put(data, errand.output)


def exists(url: str) -> bool:
    """Say whether there is a file at a URL."""
    files, path = _filesystem(url)
    return bool(files.isfile(path))


def fetched(url: str) -> bytes:
    """Return what is in the file at a URL. Raises FileNotFoundError, or what the filesystem raises."""
    files, path = _filesystem(url)
    try:
        return files.cat_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError("does not exist") from error


def put(data: bytes, url: str) -> None:
    """Write a file at a URL, whole or not at all, with the folders on the way.

    Raises OSError, or what the filesystem raises.
    """
    files, path = _filesystem(url)
    folder = path.rpartition("/")[0]
    partial = f"{folder}/.{secrets.token_hex(8)}.part"
    if folder:
        files.makedirs(folder, exist_ok=True)
    try:
        files.pipe_file(partial, data)
        files.mv(partial, path)
    except BaseException:
        with suppress(Exception):  # what went wrong before is what has to be said
            files.rm_file(partial)
        raise


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be reached: {error}") from error


def _path_of(text: str) -> str:
    return unquote(urlsplit(text).path) if text.startswith("file://") else text


def _name(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2]


def _joined(place: str, name: PurePosixPath | str) -> str:
    return f"{place.rstrip('/')}/{name}"


def _is_output(found: _Found) -> bool:
    return discover.is_output(Path(found.relative.name))


def _resolved(text: str, recursive: bool) -> tuple[list[_Found], str | None]:
    matches, reason = discover.resolve(text, recursive)
    found = [
        _Found(str(each.path), PurePosixPath(each.path.relative_to(each.root).as_posix()), each.named)
        for each in matches
    ]
    return found, reason


def _listed(url: str, recursive: bool) -> tuple[list[_Found], str | None]:
    """The pictures that a URL stands for, and why there are none; as `discover.resolve`."""
    files, path = _filesystem(url)
    if files.isfile(path):
        return [_Found(files.unstrip_protocol(path), PurePosixPath(_name(url)), named=True)], None
    if any(sign in path for sign in "*?["):
        root, matches = path.partition("*")[0].rpartition("/")[0], files.glob(path)
    elif files.isdir(path):
        root, matches = path, files.find(path, maxdepth=None if recursive else 1)
    else:
        return [], "does not exist"
    found = []
    for match in sorted(matches):
        relative = PurePosixPath(match.removeprefix(root.rstrip("/")).lstrip("/"))
        hidden = any(part.startswith(".") for part in relative.parts)
        if relative.suffix.lower() in PICTURE_SUFFIXES and not hidden and files.isfile(match):
            found.append(_Found(files.unstrip_protocol(match), relative, named=False))
    return found, None if found or files.isdir(path) else "matches no pictures"


def _single(out: str | None, texts: Sequence[str], found: Sequence[_Found]) -> str | None:
    """The place that `out` gives to the only result, or None when results are named after their inputs."""
    if out is None or out.endswith("/") or not PurePosixPath(out).suffix or _is_folder(out):
        return None
    if len(texts) != 1 or not all(each.named for each in found):
        raise PlanError(f"--out {out} names one file for several inputs; name a folder (end it with a slash)")
    format_of(out)
    if not is_url(out):
        return out
    files, path = _filesystem(out)
    return files.unstrip_protocol(path)  # one name for one place, to compare with those of the inputs


def _is_folder(place: str) -> bool:
    if not is_url(place):
        return Path(place).is_dir()
    files, path = _filesystem(place)
    return bool(files.isdir(path))


def _output(found: _Found, out: str | None) -> str:
    name = discover.result_name(found.relative.stem)
    if out is None:
        return _joined(found.place.rpartition("/")[0], name) if "/" in found.place else name
    below = found.relative.with_name(name)
    return _joined(out, below) if is_url(out) else str(Path(out) / below)


def _check_collisions(errands: Sequence[Errand]) -> None:
    owners: dict[str, str] = {}
    inputs = {errand.input for errand in errands}
    for errand in errands:
        if errand.output in owners:
            raise PlanError(discover.both_to_one(owners[errand.output], errand.input, errand.output))
        if errand.output in inputs:
            raise PlanError(f"the result {errand.output} would replace an input; choose another --out")
        owners[errand.output] = errand.input
