"""Attacks on agreement: the student is driven away from a prediction that stays as it is."""

from dataclasses import dataclass

import torch
from torch import nn

from attacks import Objective
from attacks.ball import Images
from distill import losses
from distill.losses import Logits
from distill.method import Method, Start, Step


@dataclass(frozen=True, kw_only=True)
class Agreement(Method):
    """Attacks the student's agreement with its own clean prediction."""

    eps: float | str = 0.031
    step_size: float | str = 0.007
    start: Start = "gaussian"
    beta: float = 6.0
    kl_scale: float = 1.0

    def objective(self, step: Step) -> Objective:
        return disagreement(step.student, _without_graph(step.student, step.images))


def disagreement(student: nn.Module, target: Logits) -> Objective:
    """The divergence of the student's prediction from one that stays as it is, an objective for attacks."""
    return lambda images: losses.kl(target, student(images))


@torch.no_grad()
def _without_graph(network: nn.Module, images: Images) -> Logits:
    return network(images)
