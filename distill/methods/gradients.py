"""Methods whose loss is made of the gradient at two points: GradAlign and GUARD."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.ball import Images
from distill import losses
from distill.batchnorm import batchnorm
from distill.classifier import CIFAR10
from distill.losses import Terms
from distill.method import Method, Start, Step


@dataclass(frozen=True, kw_only=True)
class GradAlign(Method):
    """Fast adversarial training whose one step can be trusted (Andriushchenko and Flammarion, NeurIPS 2020,
    arXiv 2007.02617): the gradient at a random point of the ball is held along that at the image, so that the
    loss stays near linear in the ball and no catastrophic overfitting sets in.

    Its loss is made of gradients, so a training step differentiates twice. The defaults are those for 8/255;
    the paper raises `alignment` with the radius.
    """

    steps: int = 1
    step_size: float | str = 8 / 255
    start: Start = "clean"
    alignment: float = 0.2

    def terms(self, step: Step, adversarial: Images) -> Terms:
        nearby = step.images + float(self.eps) * step.draws.uniform(step.images)
        here, there = (_gradient(step, images) for images in (step.images, nearby))
        alignment = self.alignment * losses.misalignment(here, there)
        return {**losses.pgd_at(step.student(adversarial), step.labels), "alignment": alignment}


@dataclass(frozen=True, kw_only=True)
class Guard(Method):
    """GUARD's squeezing (Xue et al., AAAI 2025, arXiv 2403.10045): a network whose loss bends little, from
    which `distill.condense` recovers a small training set.

    The gradient is compared with that a step of `reach` further up, both in units of normalised pixels, as
    the released code has it; the regulariser runs in evaluation mode.
    """

    weight: float = 100.0
    reach: float = 3.0
    std: tuple[float, float, float] = CIFAR10[1]
    """By which the network divides its pixels."""

    attacked: ClassVar[bool] = False

    def terms(self, step: Step, adversarial: Images) -> Terms:
        std = step.images.new_tensor(self.std).view(1, 3, 1, 1)
        with batchnorm(step.student, "eval"):
            here = std * _gradient(step, step.images)
            length = here.detach().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            uphill = here.detach() / length.clamp(min=1e-12)
            there = std * _gradient(step, step.images + std * self.reach * uphill)
        return {
            "clean": losses.cross_entropy(step.clean, step.labels),
            "curvature": self.weight * losses.curvature(here, there),
        }


def _gradient(step: Step, images: Images) -> Images:
    """Return the gradient of each image's cross-entropy, with the graph that leads from it to the weights."""
    images = images.detach().requires_grad_()
    loss = losses.cross_entropy(step.student(images), step.labels).sum()
    (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
    return gradient
