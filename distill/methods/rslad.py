"""A robust teacher's soft labels, also in the attack: RSLAD, and ProARD for many networks in one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar

import torch
from torch import nn

from attacks import Objective
from attacks.ball import Images
from distill import losses
from distill.batchnorm import BatchNormMode
from distill.dynamic import DEPTHS, DynamicResNet, Shape
from distill.losses import Terms
from distill.method import Method, Start, Step
from distill.methods.agreement import disagreement


@dataclass(frozen=True, kw_only=True)
class _RobustSoftLabels(Method):
    """Attacks the student's agreement with the teacher's soft labels, which it then learns."""

    start: Start = "gaussian"
    adversarial_weight: float = 5 / 6
    kl_scale: float = 0.1

    teachers: ClassVar[tuple[str, ...]] = ("robust",)

    def objective(self, step: Step) -> Objective:
        return disagreement(step.student, step.clean_of("robust"))

    def terms(self, step: Step, adversarial: Images) -> Terms:
        attacked = step.student(adversarial)
        return losses.rslad(
            step.clean_of("robust"),
            step.clean,
            attacked,
            adversarial_weight=self.adversarial_weight,
            kl_scale=self.kl_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Rslad(_RobustSoftLabels):
    """RSLAD (Zi et al., ICCV 2021, arXiv 2108.07969): the teacher's soft labels, also in the attack."""


@dataclass(frozen=True, kw_only=True)
class ProArd(_RobustSoftLabels):
    """ProARD, progressive adversarial robustness distillation (Mousavi et al., 2025): RSLAD of networks drawn
    from one that holds many, `distill.dynamic`.

    Stages follow one another as runs of their own: widths alone, then extra blocks, then ratios, each from
    the end of the one before (`distill.classifier.Grown`), with 1, 2 and 4 networks in a step. Networks are
    drawn anew in every step, and every one is attacked itself.
    """

    widths: tuple[float, ...] = (0.65, 0.8, 1.0)
    extras: tuple[int, ...] = (2,)
    ratios: tuple[float, ...] = (0.35,)
    networks: int = 1
    """In a step; their losses are added up."""
    batchnorm: BatchNormMode = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.networks < 1:
            raise ValueError(f"a step trains one network or more; got {self.networks}")
        for width, extra, ratio in product(self.widths, self.extras, self.ratios):
            Shape(width, (extra,) * len(DEPTHS), (ratio,) * len(DEPTHS))

    def perturb(self, step: Step) -> Images:
        dynamic_of(step.student).choose(self.draw(step.draws.generator))
        return super().perturb(step)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        found = [super().terms(step, adversarial)]
        for _ in range(self.networks - 1):
            other = replace(step)  # which remembers nothing that another network has said
            found.append(super().terms(other, self.perturb(other)))
        dynamic_of(step.student).choose()
        return {name: torch.stack([terms[name] for terms in found]).sum(0) for name in found[0]}

    def draw(self, generator: torch.Generator) -> Shape:
        """Draw a width, and for each stage its extra blocks and its ratio, evenly."""

        def of(values: Sequence[Any]) -> Any:
            return values[int(torch.randint(len(values), (), generator=generator))]

        extra = tuple(of(self.extras) for _ in DEPTHS)
        return Shape(of(self.widths), extra, tuple(of(self.ratios) for _ in DEPTHS))


def dynamic_of(student: nn.Module) -> DynamicResNet:
    """Return the network of many within a student.

    Raises ValueError where there is none.
    """
    for module in student.modules():
        if isinstance(module, DynamicResNet):
            return module
    raise ValueError("ProARD trains a network that holds many: let the student be dynamic-256, for example")
