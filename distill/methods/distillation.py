"""A robust teacher under attack: ARD, IAD and AdaAD."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks import Objective
from attacks.ball import Images
from distill import losses
from distill.losses import Logits, Losses, Terms
from distill.method import Method, Start, Step


@dataclass(frozen=True, kw_only=True)
class Ard(Method):
    """ARD (Goldblum et al., AAAI 2020, arXiv 1905.09747): the teacher's clean prediction, under attack."""

    alpha: float = 1.0
    temperature: float = 30.0
    kl_scale: float = 0.1
    """One over the number of classes, as in the released code."""

    teachers: ClassVar[tuple[str, ...]] = ("robust",)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        attacked = step.student(adversarial)
        return losses.ard(
            step.clean_of("robust"),
            # without its weight the clean prediction is not worth a pass
            step.clean if self.alpha < 1 else attacked,
            attacked,
            step.labels,
            alpha=self.alpha,
            temperature=self.temperature,
            kl_scale=self.kl_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Iad(Method):
    """IAD-I (Zhu et al., ICLR 2022, arXiv 2106.04928): the less the teacher is right under attack, the more
    the student trusts itself; `begin` epochs (80 for CIFAR-100) of trust come first."""

    temperature: float = 1.0
    beta: float = 0.1
    begin: int = 60
    kl_scale: float = 1.0

    teachers: ClassVar[tuple[str, ...]] = ("robust",)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        seen = step.teach("robust", adversarial)
        attacked = step.student(adversarial)
        return losses.iad(
            step.clean_of("robust"),
            step.clean,
            attacked,
            _trusted(step, seen, self.beta, self.begin),
            temperature=self.temperature,
            kl_scale=self.kl_scale,
        )


@dataclass(frozen=True, kw_only=True)
class IadTwo(Method):
    """IAD-II (Zhu et al., ICLR 2022): as IAD-I, with labels and a natural teacher beside; AKD2 (Chen et al.,
    ICLR 2021) if it never begins."""

    robust_weight: float = 0.5
    natural_weight: float = 0.25
    beta: float = 0.1
    begin: int = 40
    kl_scale: float = 1.0

    teachers: ClassVar[tuple[str, ...]] = ("robust", "natural")

    def terms(self, step: Step, adversarial: Images) -> Terms:
        seen = step.teach("robust", adversarial)
        return losses.iad_two(
            seen,
            step.teach("natural", adversarial),
            step.clean,
            step.student(adversarial),
            step.labels,
            _trusted(step, seen, self.beta, self.begin),
            robust_weight=self.robust_weight,
            natural_weight=self.natural_weight,
            kl_scale=self.kl_scale,
        )


@dataclass(frozen=True, kw_only=True)
class AdaAd(Method):
    """AdaAD (Huang et al., CVPR 2023): the attack looks for where student and teacher differ most, and its
    gradient goes through both. `kl_scale` is 1 in the released code for CIFAR-100."""

    start: Start = "gaussian"
    alpha: float = 1.0
    kl_scale: float = 0.1

    teachers: ClassVar[tuple[str, ...]] = ("robust",)

    def objective(self, step: Step) -> Objective:
        teacher, student = step.teachers["robust"], step.student
        return lambda images: losses.kl(teacher(images), student(images), detach_target=False)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        seen, attacked = step.teach("robust", adversarial), step.student(adversarial)
        # without their weight the clean predictions are not worth a pass
        teacher_clean, clean = (step.clean_of("robust"), step.clean) if self.alpha < 1 else (seen, attacked)
        return losses.ada_ad(seen, teacher_clean, clean, attacked, alpha=self.alpha, kl_scale=self.kl_scale)


def _trusted(step: Step, teacher_adversarial: Logits, beta: float, begin: int) -> Losses:
    trusted = losses.trust(teacher_adversarial, step.labels, beta=beta)
    return trusted if step.epoch >= begin else torch.ones_like(trusted)
