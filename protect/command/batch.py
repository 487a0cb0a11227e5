"""Many pictures in turn: skip what is done, write whole files or none, let no failure stop the others.

`run` yields one `Record` per input as it is finished; the command line and the web page show them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from diffusion.choice import Precision
from imaging.batch.discover import Job, Plan
from imaging.batch.lock import waited_for
from imaging.batch.mark import marked
from imaging.batch.memory import PeakMemory
from imaging.batch.runner import Finished, Status, work_through
from imaging.io import read
from imaging.picture import Picture
from protect.collective import CollectiveMethod
from protect.command.saving import save
from protect.command.together import Together
from protect.ensemble import Models, members
from protect.method import ProtectionMethod
from protect.picture import Where, protect_image
from protect.promise import Promise

Surrogate = Callable[[], Models]
FileProgress = Callable[[Job, float], object]
Make = Callable[[Job, Models], tuple[Picture, Picture]]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides about a result beside the picture itself."""

    name: str
    """The method's name in the table."""
    method: ProtectionMethod
    model: str
    """The surrogate's name for people; of several, with "+" between them."""
    promise: Promise
    """What that is worth."""
    seed: int = 0
    mask: Where | None = None
    mask_digest: str | None = None
    """Hash of the mask's file."""
    reason: str = ""
    """Why this surrogate, where nobody named one."""
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
    survive: tuple[str, ...] = ()
    """Handling that the method expected."""
    shape: str = "none"
    """How the change was made to be seen less."""
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
    patient: bool = True,
) -> Iterator[Record]:
    """Protect every job of a plan and yield its record; inputs of which no job could be made come first.

    An output that bears the mark of this very input and recipe is skipped. Another file in its place is
    never replaced unless `overwrite` says so. Interrupted at any point, a run leaves whole outputs or none.

    A collective method takes the pictures of the plan as one set, which are then all in memory; a result is
    skipped if the whole set is what it was. Two runs over the same set do it one after the other.

    Args:
        plan: from `imaging.batch.discover.plan`.
        recipe: method, model, seed and mask.
        surrogate: returns the loaded model or models; called when the first picture needs them, and its
            errors end the run.
        overwrite: replace outputs that exist.
        progress: called with a job and the share of it that is done.
        failed: called with the exception behind a failed record, for those who want its traceback.
        patient: wait for outputs that another run is making; without it nothing is yielded of them.

    Raises OnePictureError if a collective method is given a single picture.
    """
    settings, make = recipe.settings(), partial(_alone, recipe=recipe, progress=progress or _ignore)

    def work(job: Job, mark: str) -> dict[str, Any]:
        return _protect(job, mark, recipe.method.eps, surrogate(), make, overwrite=overwrite)

    with ExitStack() as ours:
        if isinstance(recipe.method, CollectiveMethod):
            together = Together(plan, recipe.method, recipe.mask)
            settings |= together.settings()
            make = partial(
                together.make, seed=recipe.seed, precision=recipe.precision, progress=progress or _ignore
            )
            with suppress(OSError):  # where nothing can be written, each picture says so itself
                ours.enter_context(_set_of(plan, together.settings()["set"]))
        finished = work_through(
            plan, settings, work, prepare=surrogate, overwrite=overwrite, failed=failed, patient=patient
        )
        for one in finished:
            yield record_of(one, recipe)


def _set_of(plan: Plan, digest: str) -> AbstractContextManager[object]:
    """Another run over the same pictures waits: their result is one piece of work, whichever comes first."""
    if not plan.jobs:
        return nullcontext()
    return waited_for(min(job.output for job in plan.jobs).with_name(digest))


def record_of(one: Finished[dict[str, Any]], recipe: Recipe) -> Record:
    """Return the record of what became of one input."""
    return Record(
        input=one.input,
        output=one.output,
        status=one.status,
        error=one.error,
        method=recipe.name,
        model=recipe.model,
        eps=round(recipe.method.eps * 255, 6),
        steps=recipe.method.steps,
        survive=recipe.method.survive,
        shape=recipe.method.shape,
        seed=recipe.seed,
        seconds=one.seconds,
        against=recipe.promise.against,
        not_against=recipe.promise.not_against,
        **(one.result or {}),
    )


def _ignore(*_: object) -> None:
    """Stand in for a callback that nobody gave."""


def _alone(job: Job, model: Models, *, recipe: Recipe, progress: FileProgress) -> tuple[Picture, Picture]:
    """One picture, and what becomes of it whatever else the run holds."""
    picture = read(job.input)
    protected = protect_image(
        picture,
        recipe.method,
        model,
        mask=recipe.mask,
        seed=recipe.seed,
        precision=recipe.precision,
        callback=lambda share: progress(job, share),
    )
    return picture, protected


def _protect(
    job: Job, mark: str, eps: float, model: Models, make: Make, *, overwrite: bool
) -> dict[str, Any]:
    """Make and write one result; what was measured of it, as fields of `Record`."""
    peak = PeakMemory(members(model)[0].device)
    picture, protected = make(job, model)
    written = marked(protected, mark, job.output)
    measured, notes = save(picture, written, job.output, eps=eps, overwrite=overwrite)
    return {
        "linf": round(measured.linf, 4),
        "psnr": round(measured.psnr, 3),
        "ssim": round(measured.ssim, 5),
        "survival": {name: round(share, 4) for name, share in measured.survival.items()},
        "changed": round(measured.changed, 5),
        "peak_memory_mb": peak.megabytes(),
        "frames": picture.frames,
        "notes": [*protected.notes, *notes],
    }
