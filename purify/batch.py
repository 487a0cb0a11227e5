"""Many pictures through a purifier, with a record of each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from diffusion.choice import Precision
from imaging.batch.discover import Job, Plan
from imaging.batch.mark import marked
from imaging.batch.memory import PeakMemory
from imaging.batch.runner import Status, work_through
from imaging.io import read, write
from imaging.metrics import linf, psnr, ssim
from imaging.picture import Picture
from purify.picture import purify_image
from purify.purifier import Purifier

_WINDOW = 2048


@dataclass(frozen=True)
class Recipe:
    """Everything that decides about a result beside the picture itself."""

    name: str
    settings: Mapping[str, Any]
    """What a person set."""
    model: str | None
    """The prior's name for people; None where there is none."""
    seed: int = 0
    model_identity: str | None = None
    precision: Precision = "auto"

    def digestible(self) -> dict[str, Any]:
        """What the mark of a result depends on."""
        return {
            "purify": self.name,
            "settings": dict(self.settings),
            "model": self.model_identity or self.model,
            "seed": self.seed,
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
    settings: dict[str, Any]
    seed: int = 0
    seconds: float = 0.0
    linf: float | None = None
    """Largest change, in 1/255."""
    psnr: float | None = None
    ssim: float | None = None
    peak_memory_mb: float | None = None
    frames: int | None = None
    notes: list[str] = field(default_factory=list)


def run(
    plan: Plan,
    recipe: Recipe,
    purifier: Callable[[], Purifier],
    *,
    overwrite: bool = False,
    progress: Callable[[Job, float], object] = lambda job, share: None,
    failed: Callable[[Exception], object] | None = None,
) -> Iterator[Record]:
    """Purify every job of a plan and yield its record.

    `purifier` returns the purifier with its loaded model, is called when the first picture needs it, and its
    errors end the run. See `imaging.batch.runner.work_through` for the rest.
    """

    def work(job: Job, mark: str) -> dict[str, Any]:
        made, picture = purifier(), read(job.input)
        place = next((parameter.device for parameter in made.parameters()), torch.device("cpu"))
        peak = PeakMemory(place)
        purified = purify_image(
            picture,
            made,
            seed=recipe.seed,
            precision=recipe.precision,
            device=place,
            callback=lambda share: progress(job, share),
        )
        job.output.parent.mkdir(parents=True, exist_ok=True)
        notes = write(marked(purified, mark, job.output), job.output, overwrite=overwrite)
        return {
            **_measured(picture, purified),
            "peak_memory_mb": peak.megabytes(),
            "frames": picture.frames,
            "notes": [*purified.notes, *notes],
        }

    settings = recipe.digestible()
    for one in work_through(plan, settings, work, prepare=purifier, overwrite=overwrite, failed=failed):
        yield Record(
            one.input,
            one.output,
            one.status,
            one.error,
            recipe.name,
            recipe.model,
            dict(recipe.settings),
            recipe.seed,
            one.seconds,
            **(one.result or {}),
        )


def _measured(before: Picture, after: Picture) -> dict[str, float]:
    """The change of the first frame; its likeness by the centre where it is larger than a window."""
    one, other = (picture.pixels[:1] for picture in (before, after))
    largest = round(float(linf(other, one)), 4)
    top, left = ((max(extent - _WINDOW, 0)) // 2 for extent in one.shape[-2:])
    one, other = (images[..., top : top + _WINDOW, left : left + _WINDOW] for images in (one, other))
    return {
        "linf": largest,
        "psnr": round(float(psnr(other, one).clamp(max=200)), 3),
        "ssim": round(float(ssim(other, one)), 5),
    }
