"""The files of a run as one set: each is read once, all are perturbed when the first result is needed."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion.choice import Precision
from imaging.batch.discover import Job, Plan
from imaging.io import read
from imaging.picture import Picture
from protect.collective import CollectiveMethod, OnePictureError, one_picture
from protect.ensemble import Models
from protect.frames import Where, check_changed, check_picture
from protect.pictures import jointly

FileProgress = Callable[[Job, float], object]


class Together:
    """The pictures of a plan that can be read, protected as one set; the others fail alone.

    Which result a picture gets depends on the others of its set, and not on their order. Whatever spoils the
    joint work is told of every picture.
    """

    def __init__(self, plan: Plan, method: CollectiveMethod, mask: Where | None) -> None:
        """Read all pictures.

        Raises OnePictureError if the plan has but one.
        """
        if len(plan.jobs) + len(plan.problems) == 1 and plan.jobs:
            raise OnePictureError(f"{one_picture(method)}; got {plan.jobs[0].input}")
        self._method, self._mask = method, mask
        self._pictures: dict[Path, Picture] = {}
        self._errors: dict[Path, Exception] = {}
        self._made: dict[Path, Picture] | Exception | None = None
        digests: dict[Path, str] = {}
        for job in plan.jobs:
            try:
                digests[job.input] = hashlib.sha256(job.input.read_bytes()).hexdigest()
                picture = read(job.input)
                check_picture(picture, method.eps, mask)
            except (OSError, ValueError) as error:
                self._errors[job.input] = error
            else:
                self._pictures[job.input] = picture
        self._order = sorted(self._pictures, key=lambda path: (digests[path], path))
        self._digest = hashlib.sha256("".join(digests[path] for path in self._order).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What a result depends on beside its own picture and the recipe."""
        return {"set": self._digest}

    def make(
        self, job: Job, model: Models, *, seed: int, precision: Precision, progress: FileProgress
    ) -> tuple[Picture, Picture]:
        """Return a job's picture and what it becomes. Raises what reading it, or the joint work, raised."""
        if job.input in self._errors:
            raise self._errors[job.input]
        if self._made is None:
            self._made = self._all(model, seed, precision, lambda share: progress(job, share))
        if isinstance(self._made, Exception):
            raise self._made
        picture, protected = self._pictures[job.input], self._made[job.input]
        check_changed(picture, protected)
        return picture, protected

    def _all(
        self, model: Models, seed: int, precision: Precision, callback: Callable[[float], object]
    ) -> dict[Path, Picture] | Exception:
        pictures = [self._pictures[path] for path in self._order]
        if len(pictures) < 2:
            return OnePictureError(f"{one_picture(self._method)}; the others of this run could not be read")
        masks = [self._mask] * len(pictures)
        try:
            (surrogate,) = self._method.surrogates(model)
            made = jointly(
                pictures, self._method, surrogate, masks, seed=seed, precision=precision, callback=callback
            )
        except Exception as error:
            return error
        return dict(zip(self._order, made, strict=True))
