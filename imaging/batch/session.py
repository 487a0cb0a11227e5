"""One run of a command over many files: what is said, reported and returned, on Ctrl-C too."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from imaging.batch.discover import Job
from imaging.batch.reports import line, write_report
from imaging.batch.runner import explain
from imaging.batch.terminal import DONE, FAILED, INTERRUPTED

Record = TypeVar("Record")


class Planned(Protocol):
    """What a run is going to do, as far as it matters here: `discover.Plan`, or one of URLs."""

    @property
    def jobs(self) -> Sequence[Any]: ...
    @property
    def problems(self) -> Sequence[Any]: ...
    @property
    def left_out(self) -> Sequence[Any]: ...


class Screen(Protocol):
    """Where a run talks to: a terminal, a log file, or nobody."""

    def say(self, text: str) -> None:
        """Tell what happened."""

    def complain(self, text: str) -> None:
        """Tell what went wrong."""

    def update(self, job: Job, share: float) -> None:
        """Show that this share of a job is done."""

    def finish(self) -> None:
        """Show that one more input is finished."""


def follow(
    plan: Planned,
    records: Iterator[Record],
    screen: Screen,
    *,
    label: str,
    closing: Sequence[str],
    report: str | None = None,
    earlier: Iterable[Any] = (),
    tell: Callable[[Record], str] = line,
    after: Callable[[list[Record]], bool] = lambda made: True,
) -> int:
    """Tell what becomes of each input, write the report, and return the exit code.

    Errors of `records` pass through.

    Args:
        plan: what `records` works through.
        records: one per input, as it is finished.
        screen: where to tell.
        label: what results are called, as in `discover.plan`.
        closing: said at the end, after how many were done.
        report: where to write the records.
        earlier: records of the last report; those of inputs that an interrupted run has not reached stay.
        tell: puts a record into one line.
        after: called with all records before the report is written; False says that something is missing.
    """
    made: list[Any] = []
    complete, interrupted = True, False
    if plan.left_out:
        screen.say(f"left out {len(plan.left_out)} results of earlier runs (*.{label}.*)")
    try:
        for record in records:
            made.append(record)
            (screen.complain if made[-1].status == "failed" else screen.say)(tell(record))
            screen.finish()
        made = in_order(plan, made)
        complete = after(made)
    except KeyboardInterrupt:
        interrupted = True
    if report is not None:
        reached = {record.input for record in made}
        kept = [record for record in earlier if interrupted and record.input not in reached]
        complete = _reported(in_order(plan, [*made, *kept]), report, screen) and complete
    counts = Counter(record.status for record in made)
    if interrupted:
        finished, total = len(made) - counts["failed"], len(plan.jobs) + len(plan.problems)
        screen.complain(f"interrupted with {finished} of {total} done; the same command goes on from here")
        return INTERRUPTED
    screen.say(f"{counts['done']} done, {counts['skipped']} skipped, {counts['failed']} failed")
    for sentence in closing:
        screen.say(sentence)
    return FAILED if counts["failed"] or not complete else DONE


def in_order(plan: Planned, made: Sequence[Any]) -> list[Any]:
    """Return records in the order of their plan, those without a job first, however they were finished."""
    places = {str(job.input): place for place, job in enumerate(plan.jobs)}
    return sorted(made, key=lambda record: places.get(record.input, -1))


def _reported(made: Sequence[Any], report: str, screen: Screen) -> bool:
    try:
        write_report(made, Path(report))
    except OSError as error:
        screen.complain(f"the report was not written: {explain(error)}")
        return False
    return True
