"""Other labels than those of the data: LTD, ADR, soft labels of mixed images, defensive distillation."""

import math
from dataclasses import dataclass
from typing import ClassVar

from attacks import Objective
from attacks.ball import Images
from distill import losses
from distill.losses import Probabilities, Terms
from distill.method import Method, Step
from distill.methods.agreement import Agreement


@dataclass(frozen=True, kw_only=True)
class Ltd(Agreement):
    """LTD (Chen and Lee, 2021, arXiv 2111.02331): TRADES with the labels of a natural teacher at a low
    temperature. The student's is 1, in training and after.

    No code was released: `label_temperature` is our choice, to be sought in {1, 2, 3, 5}.
    """

    label_temperature: float = 2.0

    teachers: ClassVar[tuple[str, ...]] = ("natural",)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        labels = losses.soft_labels(step.clean_of("natural"), temperature=self.label_temperature)
        attacked = step.student(adversarial)
        return losses.trades(step.clean, attacked, labels, beta=self.beta, kl_scale=self.kl_scale)


@dataclass(frozen=True, kw_only=True)
class Adr(Method):
    """ADR (Wu et al., ICLR 2024): labels rectified by the student's own averaged weights, in the attack and
    in the loss. The defaults are those for CIFAR-10 without AWP."""

    temperature_high: float = 2.5
    temperature_low: float = 2.0
    confidence_low: float = 0.7
    confidence_high: float = 0.95

    averaged: ClassVar[bool] = True

    def labels(self, step: Step) -> Probabilities:
        """Return the rectified labels at this point of the training."""
        return losses.rectified(
            step.clean_of("average"),
            step.labels,
            temperature=cosine(self.temperature_high, self.temperature_low, step.progress),
            confidence=cosine(self.confidence_low, self.confidence_high, step.progress),
        )

    def objective(self, step: Step) -> Objective:
        student, target = step.student, self.labels(step)
        return lambda images: losses.cross_entropy(student(images), target)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        return losses.pgd_at(step.student(adversarial), self.labels(step))


@dataclass(frozen=True, kw_only=True)
class SoftLabels(Method):
    """Training on a teacher's soft labels of mixed images, as on a distilled set (SRe2L; Yin et al., NeurIPS
    2023, arXiv 2306.13092).

    Every image is mixed with the one before it among those of its process, by a share that is drawn from
    Beta(mixup, mixup) for the whole batch.
    """

    temperature: float = 30.0
    mixup: float = 0.8

    attacked: ClassVar[bool] = False
    teachers: ClassVar[tuple[str, ...]] = ("natural",)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        share = step.draws.beta(self.mixup) if self.mixup else 1.0
        mixed = share * step.images + (1 - share) * step.images.roll(1, 0)
        target = step.teach("natural", mixed)
        divergence = losses.kl(target, step.student(mixed), temperature=self.temperature)
        return {"distilled": self.temperature**2 * divergence}


@dataclass(frozen=True, kw_only=True)
class DefensiveDistillation(Method):
    """Defensive distillation (Papernot et al., S&P 2016, arXiv 1511.04508): a control that must fail.

    Its student, trained at a high temperature and used at 1, has logits so large that the gradient of the
    cross-entropy vanishes; margins do not, and AutoAttack finds what was always there. The loss is multiplied
    by the temperature, so that a learning rate means what it does elsewhere.
    """

    temperature: float = 100.0
    teacher_temperature: float | None = None
    """That of the teacher's own training, at which its labels are taken: the same as the student's, as in the
    paper, unless it is given. Labels of an ordinary teacher, 1, at a high temperature would say nothing."""

    attacked: ClassVar[bool] = False
    teachers: ClassVar[tuple[str, ...]] = ("natural",)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        own, labels_at = self.temperature, self.teacher_temperature or self.temperature
        labels = losses.soft_labels(step.clean_of("natural"), temperature=labels_at)
        return {"distilled": own * losses.cross_entropy(step.student(adversarial) / own, labels)}


def cosine(begin: float, end: float, progress: float) -> float:
    """Return the value between `begin` and `end` on half a cosine, `progress` being from 0 to 1."""
    return end + (begin - end) * (1 + math.cos(math.pi * progress)) / 2
