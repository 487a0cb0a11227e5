"""A method of robust training: what its attack maximises and what its student minimises."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks import Linf, Objective, cross_entropy, pgd
from attacks.ball import Images
from distill.batchnorm import BatchNormMode, batchnorm, frozen
from distill.draws import Draws
from distill.losses import Labels, Logits, Losses, Terms

Start = Literal["uniform", "gaussian", "clean"]


@dataclass
class Step:
    """What a method may look at in one training step; nothing is computed before it is asked for."""

    student: nn.Module
    images: Images
    labels: Labels
    draws: Draws
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    """Frozen classifiers by part: "robust", "natural"."""
    average: nn.Module | None = None
    """The student with averaged weights."""
    state: nn.Module = field(default_factory=nn.Module)
    """What `Method.new_state` made."""
    epoch: int = 0
    progress: float = 0.0
    """The share of the training that is over."""
    decay: float = 1.0
    """What the schedule multiplies the learning rate by."""
    mean: Callable[[Losses], Tensor] = torch.mean
    """The mean over the images of all processes."""
    taught: dict[str, Logits] = field(default_factory=dict)
    """Logits on clean images that are known already."""

    @cached_property
    def clean(self) -> Logits:
        """The student's logits on the clean images, with their graph."""
        return self.student(self.images)

    def teach(self, part: str, images: Images) -> Logits:
        """Return a teacher's logits without a graph."""
        with torch.no_grad():
            return self.teachers[part](images)

    def clean_of(self, part: str) -> Logits:
        """Return the logits of a teacher, or of the "average", on the clean images, computed once."""
        if part not in self.taught:
            with torch.no_grad():
                network = self.average if part == "average" else self.teachers[part]
                assert network is not None
                self.taught[part] = network(self.images)
        return self.taught[part]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Settings of the attack that all methods share, and two doors: `terms`, and `objective` where the
    attack is another than that on the labels.

    Radius and step are in units of images in [0, 1]; configuration files may write them as "8/255".
    """

    eps: float | str = 8 / 255
    steps: int = 10
    step_size: float | str = 2 / 255
    start: Start = "uniform"
    """A uniform draw from the ball, the image with Gaussian noise of 0.001, or the image itself."""
    batchnorm: BatchNormMode = "eval"
    """Of the student in the attack; "train" and "batch" are those of some released code."""

    teachers: ClassVar[tuple[str, ...]] = ()
    attacked: ClassVar[bool] = True
    """Whether it trains on adversarial images at all."""
    averaged: ClassVar[bool] = False
    """Whether it looks at the average of the student's weights."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", length(self.eps))
        object.__setattr__(self, "step_size", length(self.step_size))
        check_radius(float(self.eps))
        if not 0 < float(self.step_size) <= 2 * float(self.eps):
            raise ValueError(
                f"step_size is a length in the ball of eps {self.eps:.4g}; got {self.step_size:.4g}: are the "
                "two swapped?"
            )
        if self.steps < 1 or self.start not in ("uniform", "gaussian", "clean"):
            raise ValueError(f"there is no attack of {self.steps} steps from a {self.start!r} start")

    def objective(self, step: Step) -> Objective:
        """Return what the attack maximises, the cross-entropy unless a method says otherwise; called with the
        student in the attack's mode, weights frozen."""
        return cross_entropy(step.student, step.labels)

    @abstractmethod
    def terms(self, step: Step, adversarial: Images) -> Terms:
        """Return what the student minimises, by name, weighted; called with the student in training mode."""

    def new_state(self) -> nn.Module:
        """Return what changes while the method trains, as buffers."""
        return nn.Module()

    def perturb(self, step: Step) -> Images:
        """Return the adversarial images of a step, detached."""
        if not self.attacked:
            return step.images
        with batchnorm(step.student, self.batchnorm), frozen(step.student):
            return pgd(
                self.objective(step),
                step.images,
                Linf(float(self.eps)),
                steps=self.steps,
                step_size=float(self.step_size),
                start=self._start(step),
            )

    def _start(self, step: Step) -> Images:
        if self.start == "uniform":
            return step.images + float(self.eps) * step.draws.uniform(step.images)
        if self.start == "gaussian":
            return step.images + 0.001 * step.draws.normal(step.images)
        return step.images


def length(value: float | str) -> float:
    """Read a length such as 0.0314 or "8/255".

    Raises ValueError for text that is neither.
    """
    try:
        above, _, below = str(value).partition("/")
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"a length is a number or a fraction such as 8/255; got {value!r}") from None


def check_radius(eps: float) -> None:
    """Raise ValueError for what cannot be a radius of images in [0, 1], such as 8."""
    if not 0 < eps <= 64 / 255:
        raise ValueError(f"eps is a radius of images in [0, 1], such as 8/255, at most 64/255; got {eps:g}")
