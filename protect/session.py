"""One run of the command line without its terminal: what is prepared, done, reported, and said on Ctrl-C."""

import hashlib
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from diffusion.choice import Choice, Precision
from diffusion.model import DiffusionModel
from imaging.batch.discover import Job, Plan, PlanError, plan
from imaging.batch.reports import write_report
from imaging.batch.runner import explain
from imaging.batch.saving import check_writable
from imaging.batch.terminal import DONE, FAILED, INTERRUPTED
from imaging.errors import PictureError
from imaging.formats import format_of
from imaging.io import write
from imaging.picture import Picture
from imaging.sheet import contact_sheet
from protect.batch import Recipe, Record, run
from protect.method import ProtectionMethod
from protect.picture import read_mask
from protect.promise import promise
from protect.report import HEADINGS, line, sheet_row, summary

_LARGEST_SHEET = 40


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


def prepare(
    paths: Sequence[str], *, out: str | None, recursive: bool, report: str | None, sheet: str | None
) -> Plan:
    """Plan the work and make sure that report and sheet can be written and replace nothing.

    Raises ValueError or OSError with a sentence.
    """
    made = plan(paths, out=out, recursive=recursive)
    taken = {os.path.realpath(path) for job in made.jobs for path in (job.input, job.output)}
    for flag, extra in (("--report", report), ("--sheet", sheet)):
        if extra is None:
            continue
        if os.path.realpath(extra) in taken:
            raise PlanError(f"{flag} {extra} would replace an input or a result")
        taken.add(os.path.realpath(extra))
        check_writable(Path(extra))
    if sheet is not None:
        format_of(sheet)
    return made


def recipe_for(
    name: str, method: ProtectionMethod, model: Choice, *, mask: str | None, seed: int, precision: Precision
) -> Recipe:
    """Put together what decides about the results.

    Raises ValueError when the mask cannot be read or hides everything.
    """
    try:
        where = None if mask is None else read_mask(mask)
    except ValueError as error:
        raise ValueError(f"--mask: {error}") from error
    return Recipe(
        name=name.lower(),
        method=method,
        model=model.label,
        promise=promise(name, model.name),
        seed=seed,
        mask=where,
        mask_digest=None if where is None else hashlib.sha256(where.numpy().tobytes()).hexdigest(),
        model_identity=model.identity,
        precision=precision,
    )


@dataclass
class Session:
    """A prepared run. `surrogate` loads the model when it is first needed."""

    plan: Plan
    recipe: Recipe
    surrogate: Callable[[], DiffusionModel]
    screen: Screen
    report: str | None = None
    sheet: str | None = None
    overwrite: bool = False
    show_traceback: bool = False
    records: list[Record] = field(default_factory=list)

    def run(self) -> int:
        """Do the work and return the exit code. Errors of `surrogate` pass through."""
        if self.plan.left_out:
            self.screen.say(f"left out {len(self.plan.left_out)} results of earlier runs (*.protected.*)")
        try:
            self._protect()
            complete = self._draw_sheet()
        except KeyboardInterrupt:
            self._write_report()
            finished = sum(record.status != "failed" for record in self.records)
            total = len(self.plan.jobs) + len(self.plan.problems)
            self.screen.complain(
                f"interrupted with {finished} of {total} done; the same command goes on from here"
            )
            return INTERRUPTED
        complete = self._write_report() and complete
        for sentence in summary(self.records, self.recipe):
            self.screen.say(sentence)
        failed = any(record.status == "failed" for record in self.records)
        return FAILED if failed or not complete else DONE

    def _protect(self) -> None:
        failed = traceback.print_exception if self.show_traceback else None
        for record in run(
            self.plan,
            self.recipe,
            self.surrogate,
            overwrite=self.overwrite,
            progress=self.screen.update,
            failed=failed,
        ):
            self.records.append(record)
            (self.screen.complain if record.status == "failed" else self.screen.say)(line(record))
            self.screen.finish()

    def _write_report(self) -> bool:
        if self.report is None:
            return True
        try:
            write_report(self.records, Path(self.report))
        except OSError as error:
            self.screen.complain(f"the report was not written: {explain(error)}")
            return False
        return True

    def _draw_sheet(self) -> bool:
        shown = [record for record in self.records if record.output is not None]
        if self.sheet is None or not shown:
            return True
        try:
            model, prompt = self.surrogate(), self.recipe.method.prompt
            rows = [sheet_row(record, model, prompt=prompt) for record in shown[:_LARGEST_SHEET]]
            Path(self.sheet).parent.mkdir(parents=True, exist_ok=True)
            write(Picture.from_pixels(contact_sheet(rows, HEADINGS)), self.sheet, overwrite=True)
        except (PictureError, OSError, RuntimeError, ValueError) as error:
            self.screen.complain(f"the sheet was not drawn: {explain(error)}")
            return False
        if len(shown) > _LARGEST_SHEET:
            self.screen.say(f"the sheet shows the first {_LARGEST_SHEET} of {len(shown)} pictures")
        return True
