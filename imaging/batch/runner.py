"""Files in turn: skip what is done, let no failure stop the others, and say in one line what went wrong."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from imaging.batch.discover import Job, Plan
from imaging.batch.lock import locked, pause
from imaging.batch.mark import bears, fingerprint, has_room
from imaging.batch.saving import check_writable
from imaging.shortage import short_of_memory

Status = Literal["done", "skipped", "failed"]
Result = TypeVar("Result")

_EXPECTED = (ArithmeticError, ValueError, OSError)
"""Errors whose message is meant for the person whose file it is; ours of `imaging` are ValueErrors."""


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """What happened to one input."""

    input: str
    output: str | None
    status: Status
    error: str | None
    seconds: float
    result: Result | None = None


def work_through(
    plan: Plan,
    settings: Mapping[str, Any],
    work: Callable[[Job, str], Result],
    *,
    prepare: Callable[[], object] = lambda: None,
    overwrite: bool = False,
    failed: Callable[[Exception], object] | None = None,
    patient: bool = True,
) -> Iterator[Finished[Result]]:
    """Do the jobs of a plan in turn and yield what became of each; inputs without a job come first.

    An output that bears the mark of this very input and settings is skipped. Another file in its place is
    never replaced unless `overwrite` says so. An output that another run is making at the moment is left for
    the end and waited for, so that two runs over one folder share its pictures (see `imaging.batch.lock`).

    Args:
        plan: from `discover.plan`.
        settings: everything that decides about a result beside the input; JSON must be able to write it.
        work: takes a job and the mark that its output has to bear, writes the output whole or not at all.
        prepare: called before each piece of work; its errors end the run. Load and keep a model here.
        overwrite: replace outputs that exist.
        failed: called with the exception behind a failure, for those who want its traceback.
        patient: wait for other runs; without it nothing is yielded of what they are making.
    """
    for problem in plan.problems:
        yield Finished(problem.input, None, "failed", problem.reason, 0.0)

    def attempt(job: Job) -> Finished[Result] | None:
        return _attempt(job, settings, work, prepare, overwrite, failed or _nobody)

    held: list[Job] = []
    for job in plan.jobs:
        one = attempt(job)
        if one is None:
            held.append(job)
        else:
            yield one
    for job in held if patient else ():
        while (one := attempt(job)) is None:
            pause()
        yield one


def _nobody(error: Exception) -> None:
    """Stand in for a callback that nobody gave."""


def _attempt(
    job: Job,
    settings: Mapping[str, Any],
    work: Callable[[Job, str], Result],
    prepare: Callable[[], object],
    overwrite: bool,
    failed: Callable[[Exception], object],
) -> Finished[Result] | None:
    """What became of a job, or None if another run is at work on it."""
    started = time.monotonic()

    def finished(
        status: Status, error: Exception | None = None, result: Result | None = None
    ) -> Finished[Result]:
        if error is not None:
            failed(error)
        reason = None if error is None else explain(error, job.input)
        output = None if status == "failed" else str(job.output)
        return Finished(str(job.input), output, status, reason, round(time.monotonic() - started, 3), result)

    with ExitStack() as ours:
        try:
            # Taken before the picture is read, so that one that changes meanwhile is done again next time.
            mark = fingerprint(job.input.read_bytes(), settings)
            done = is_done(job, mark, overwrite=overwrite)
            if not done:
                if not ours.enter_context(locked(job.output)):
                    return None
                done = is_done(job, mark, overwrite=overwrite)  # another run may just have finished it
        except Exception as error:
            return finished("failed", error)
        if done:
            return finished("skipped")
        prepare()  # outside: without a model there is nothing to do for any file
        try:
            result = work(job, mark)
        except Exception as error:
            return finished("failed", error)
        return finished("done", result=result)


def is_done(job: Job, mark: str, *, overwrite: bool = False) -> bool:
    """Say whether the output is there and bears the mark.

    Raises OSError when it cannot be written, or is there, was made otherwise and is not to be replaced.
    """
    check_writable(job.output, at_least=job.input.stat().st_size)
    if not os.path.lexists(job.output) or overwrite:
        return False
    if bears(job.output, mark):
        return True
    made = "was not made from this input with these settings"
    unknown = f"{job.output.suffix[1:].upper()} cannot tell what it was made from"
    reason = made if has_room(job.output) else unknown
    raise FileExistsError(f"{job.output} exists and {reason}; --overwrite replaces it")


def explain(error: Exception, path: Path | None = None) -> str:
    """Say in one line what went wrong, without the file's own name in front."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full; close other programs or use --device cpu"
    if short_of_memory(error):
        return "this computer's memory is full"
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if not isinstance(error, _EXPECTED):
        return f"{type(error).__name__}: {text} (unexpected; --traceback shows where)"
    return text.removeprefix(f"{str(path)!r} ") or type(error).__name__
