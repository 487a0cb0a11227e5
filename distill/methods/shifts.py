"""Robustness to natural shifts rather than to attacks: HARD and DAD."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks import L2, cross_entropy, pgd
from attacks.ball import Images
from distill import losses
from distill.augmentor import Augmentor, slope
from distill.batchnorm import batchnorm, frozen
from distill.losses import Losses, Terms
from distill.method import Method, Step


@dataclass(frozen=True, kw_only=True)
class Hard(Method):
    """HARD (Nix, Burg and Sinz, 2023, arXiv 2305.14890): the student follows the teacher on augmented images,
    and the augmentation climbs to where it does not. It is for clean and shifted pictures, no adversarial
    training.

    The student learns at every step. The augmentation climbs while both agree on more than `above` of the
    images, until they agree on fewer than `below`; these thresholds, and the augmentation, are ours.
    """

    temperature: float = 4.0
    rate: float = 0.02
    """By which share of its limit a strength moves in a step."""
    above: float = 0.6
    below: float = 0.4

    attacked: ClassVar[bool] = False
    teachers: ClassVar[tuple[str, ...]] = ("natural",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.below <= self.above <= 1:
            raise ValueError(f"agreements lie in [0, 1]; got below {self.below:g}, above {self.above:g}")

    def new_state(self) -> Augmentor:
        return Augmentor()

    def perturb(self, step: Step) -> Images:
        augmentor = step.state
        assert isinstance(augmentor, Augmentor)
        noise = step.draws.normal(step.images.new_zeros(len(step.images), len(augmentor.strengths)))
        if augmentor.climbing:

            def apart(strengths: Tensor) -> Losses:
                images = augmentor(step.images, noise, strengths)
                teacher = step.teachers["natural"](images)
                return losses.kl(
                    teacher, step.student(images), temperature=self.temperature, detach_target=False
                )

            with batchnorm(step.student, "eval"), frozen(step.student):
                gradient = slope(apart, augmentor.strengths)
            augmentor.climb(torch.stack([step.mean(each[None]) for each in gradient]), self.rate)
        return augmentor(step.images, noise).detach()

    def terms(self, step: Step, adversarial: Images) -> Terms:
        augmentor, target = step.state, step.teach("natural", adversarial)
        assert isinstance(augmentor, Augmentor)
        logits = step.student(adversarial)
        same = (logits.detach().argmax(1) == target.argmax(1)).to(logits.dtype)
        augmentor.decide(step.mean(same), above=self.above, below=self.below)
        divergence = losses.kl(target, logits, temperature=self.temperature)
        return {"distilled": self.temperature**2 * divergence}


@dataclass(frozen=True, kw_only=True)
class Dad(Method):
    """DAD, discrete adversarial distillation (Zhou et al., NeurIPS 2023, arXiv 2311.01441): the student
    follows a robust teacher on clean images, and on images that one step in L2 has made hard for the teacher
    and a codec has rounded to its codes. It is for natural shifts; no adversarial accuracy is to be expected.

    What the teacher's step raises is its cross-entropy, a choice of ours. The authors make such images once
    and before training; here they are made of the augmented images of each step.
    """

    codec: nn.Module | None = None
    """Gives images in [0, 1] back through discrete codes, such as `experiments.discrete.Discretiser`."""
    radius: float = 0.1
    stride: float = 0.01
    """Of the step, in L2 and units of images in [0, 1], as `radius`."""
    random_start: float = 0.8
    """The share of images that begin at a random place of the ball."""
    weight: float = 0.5
    temperature: float = 4.0

    attacked: ClassVar[bool] = False
    teachers: ClassVar[tuple[str, ...]] = ("robust",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.radius > 0 and self.stride > 0 and 0 <= self.random_start <= 1):
            raise ValueError(
                "radius and stride are lengths and random_start is a share; got "
                f"{self.radius:g}, {self.stride:g}, {self.random_start:g}"
            )

    def perturb(self, step: Step) -> Images:
        images, ball = step.images, L2(self.radius)
        direction = step.draws.normal(images)
        begins = step.draws.uniform(images[:, :1, :1, :1]) < 2 * self.random_start - 1
        far = (
            step.draws.uniform(images[:, :1, :1, :1]) + 1
        ) / 2  # of the radius, as no direction is preferred
        length = self.radius * far ** (1 / images[0].numel())  # uniform in the ball
        unit = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        hard = pgd(
            cross_entropy(step.teachers["robust"], step.labels),
            images,
            ball,
            steps=1,
            step_size=self.stride,
            start=images + begins * length * unit,
        )
        if self.codec is None:
            return hard
        return self.codec.to(images.device)(hard)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        hard = step.student(adversarial)
        clean, target = step.clean_of("robust"), step.teach("robust", adversarial)
        weight = self.weight * self.temperature**2
        return {
            "clean": losses.cross_entropy(step.clean, step.labels),
            "distilled": weight * losses.kl(clean, step.clean, temperature=self.temperature),
            "discrete": weight * losses.kl(target, hard, temperature=self.temperature),
        }
