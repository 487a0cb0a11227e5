"""Many pictures in turn: skip what is done, write whole files or none, let no failure stop the others.

`run` yields one `Record` per input as it is finished; the command line and the web page show them.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from attacks import NonFiniteError
from diffusion.model import DiffusionModel
from imaging.errors import PictureError
from imaging.io import read
from protect.discover import Job, Plan
from protect.mark import bears, fingerprint, has_room, marked
from protect.memory import PeakMemory
from protect.method import ProtectionMethod
from protect.picture import Where, protect_image
from protect.promise import Promise
from protect.saving import check_writable, save
from protect.surrogate import Precision

Status = Literal["done", "skipped", "failed"]
Surrogate = Callable[[], DiffusionModel]
FileProgress = Callable[[Job, float], object]

_EXPECTED = (PictureError, NonFiniteError, ValueError, OSError)
"""Errors whose message is meant for the person whose file it is."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides about a result beside the picture itself."""

    name: str
    """The method's name in the table."""
    method: ProtectionMethod
    model: str
    """The surrogate's name for people."""
    promise: Promise
    """What that is worth."""
    seed: int = 0
    mask: Where | None = None
    mask_digest: str | None = None
    """Hash of the mask's file."""
    model_identity: str | None = None
    """A name that changes with the surrogate's weights; `model` by default."""
    precision: Precision = "auto"

    def settings(self) -> dict[str, Any]:
        """What the mark of a result depends on: not hardware and precision, which only change roundings."""
        return {
            "method": type(self.method).__name__,
            "fields": asdict(self.method),
            "model": self.model_identity or self.model,
            "seed": self.seed,
            "mask": self.mask_digest,
        }


@dataclass(frozen=True)
class Record:
    """What happened to one input; the rows of `--report`. Numbers that were not measured are None."""

    input: str
    output: str | None
    status: Status
    error: str | None
    method: str
    model: str | None
    eps: float
    """In 1/255, as `linf`."""
    linf: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    steps: int = 0
    seed: int = 0
    seconds: float = 0.0
    peak_memory_mb: float | None = None
    survival: dict[str, float] | None = None
    changed: float | None = None
    """Share of pixels that changed."""
    frames: int | None = None
    notes: list[str] = field(default_factory=list)
    """What reading or writing had to convert or drop."""
    against: str = ""
    """What the protection is aimed at."""
    not_against: str = ""
    """What it is not known to withstand."""


def run(
    plan: Plan,
    recipe: Recipe,
    surrogate: Surrogate,
    *,
    overwrite: bool = False,
    progress: FileProgress | None = None,
    failed: Callable[[Exception], object] | None = None,
) -> Iterator[Record]:
    """Protect every job of a plan and yield its record; inputs of which no job could be made come first.

    An output that bears the mark of this very input and recipe is skipped. Another file in its place is
    never replaced unless `overwrite` says so. Interrupted at any point, a run leaves whole outputs or none.

    Args:
        plan: from `protect.discover.plan`.
        recipe: method, model, seed and mask.
        surrogate: returns the loaded model; called when the first picture needs it, and its errors end the
            run.
        overwrite: replace outputs that exist.
        progress: called with a job and the share of it that is done.
        failed: called with the exception behind a failed record, for those who want its traceback.
    """
    one = _Run(recipe, surrogate, overwrite, progress or _ignore, failed or _ignore)
    for problem in plan.problems:
        yield one.record(problem.input, status="failed", error=problem.reason)
    for job in plan.jobs:
        started = time.monotonic()
        record = one.protect(job)
        yield replace(record, seconds=round(time.monotonic() - started, 3))


def _ignore(*_: object) -> None:
    """Stand in for a callback that nobody gave."""


@dataclass(frozen=True)
class _Run:
    """What is the same for every file of a run."""

    recipe: Recipe
    surrogate: Surrogate
    overwrite: bool
    progress: FileProgress
    failed: Callable[[Exception], object]

    def record(self, name: str | Path, *, status: Status, error: str | None = None, **known: Any) -> Record:
        recipe = self.recipe
        return Record(
            input=str(name),
            output=known.pop("output", None),
            status=status,
            error=error,
            method=recipe.name,
            model=recipe.model,
            eps=round(recipe.method.eps * 255, 6),
            steps=recipe.method.steps,
            seed=recipe.seed,
            against=recipe.promise.against,
            not_against=recipe.promise.not_against,
            **known,
        )

    def protect(self, job: Job) -> Record:
        try:
            # Taken before the picture is read, so that one that changes meanwhile is done again next time.
            mark = fingerprint(job.input.read_bytes(), self.recipe.settings())
            if self.is_done(job, mark):
                return self.record(job.input, status="skipped", output=str(job.output))
        except Exception as error:
            return self.failure(job, error)
        model = self.surrogate()  # outside: without a model there is nothing to do for any file
        try:
            return self.work(job, model, mark)
        except Exception as error:
            return self.failure(job, error)

    def is_done(self, job: Job, mark: str) -> bool:
        """Raises OSError when the output cannot be written, or is there and was made otherwise."""
        check_writable(job.output, at_least=job.input.stat().st_size)
        if not os.path.lexists(job.output) or self.overwrite:
            return False
        if bears(job.output, mark):
            return True
        made = "was not made from this input with these settings"
        unknown = f"{job.output.suffix[1:].upper()} cannot tell what it was made from"
        reason = made if has_room(job.output) else unknown
        raise FileExistsError(f"{job.output} exists and {reason}; --overwrite replaces it")

    def work(self, job: Job, model: DiffusionModel, mark: str) -> Record:
        recipe, peak = self.recipe, PeakMemory(model.device)
        picture = read(job.input)
        protected = protect_image(
            picture,
            recipe.method,
            model,
            mask=recipe.mask,
            seed=recipe.seed,
            precision=recipe.precision,
            callback=lambda share: self.progress(job, share),
        )
        written = marked(protected, mark, job.output)
        measured, notes = save(picture, written, job.output, eps=recipe.method.eps, overwrite=self.overwrite)
        return self.record(
            job.input,
            status="done",
            output=str(job.output),
            linf=round(measured.linf, 4),
            psnr=round(measured.psnr, 3),
            ssim=round(measured.ssim, 5),
            survival={name: round(share, 4) for name, share in measured.survival.items()},
            changed=round(measured.changed, 5),
            peak_memory_mb=peak.megabytes(),
            frames=picture.frames,
            notes=[*picture.notes, *notes],
        )

    def failure(self, job: Job, error: Exception) -> Record:
        self.failed(error)
        return self.record(job.input, status="failed", error=explain(error, job.input))


def explain(error: Exception, path: Path | None = None) -> str:
    """Say in one line what went wrong, without the file's own name in front."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full; close other programs or use --device cpu"
    if isinstance(error, MemoryError):
        return "this computer's memory is full"
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if not isinstance(error, _EXPECTED):
        return f"{type(error).__name__}: {text} (unexpected; --traceback shows where)"
    return text.removeprefix(f"{str(path)!r} ") or type(error).__name__
