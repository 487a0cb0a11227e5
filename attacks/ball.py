"""Balls: the sets of allowed perturbations. Each knows its geometry in four short methods and nothing
else."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch channels height width"]
Losses = Float[Tensor, " batch"]


@runtime_checkable
class Ball(Protocol):
    """A set of perturbations around zero, one per image."""

    def random_start(self, images: Images, generator: torch.Generator | None) -> Images:
        """Draw a perturbation uniformly from the ball, the same one for every image of the batch."""
        ...

    def steepest(self, gradient: Images) -> Images:
        """The unit step of steepest ascent in this ball's norm."""
        ...

    def project(self, delta: Images) -> Images:
        """The nearest perturbation inside the ball."""
        ...

    def distance(self, delta: Images) -> Losses:
        """The norm of each perturbation, in the units of the radius."""
        ...


def _check_radius(eps: float) -> None:
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps must be a positive radius such as 8/255; got {eps}")


@dataclass(frozen=True)
class Linf:
    """Every channel of every pixel moves by at most `eps` (images in [0,1], so 8/255 is 8 levels of a
    byte)."""

    eps: float

    def __post_init__(self) -> None:
        _check_radius(self.eps)

    def random_start(self, images: Images, generator: torch.Generator | None) -> Images:
        return (2 * _shared(torch.rand, images, generator) - 1) * self.eps

    def steepest(self, gradient: Images) -> Images:
        return gradient.sign()

    def project(self, delta: Images) -> Images:
        return delta.clamp(-self.eps, self.eps)

    def distance(self, delta: Images) -> Losses:
        return delta.abs().flatten(1).amax(1)


@dataclass(frozen=True)
class L2:
    """The Euclidean norm over all channels and pixels of an image is at most `eps` (images in [0,1])."""

    eps: float

    def __post_init__(self) -> None:
        _check_radius(self.eps)

    def random_start(self, images: Images, generator: torch.Generator | None) -> Images:
        # A Gaussian direction at radius u^(1/n) is uniform in the ball; u itself would crowd the centre.
        direction = self.steepest(_shared(torch.randn, images, generator))
        u = _shared(torch.rand, images[:, :1, :1, :1], generator)
        return direction * self.eps * u ** (1 / images[0].numel())

    def steepest(self, gradient: Images) -> Images:
        return gradient / _column(gradient.flatten(1).norm(dim=1)).clamp_min(torch.finfo(gradient.dtype).tiny)

    def project(self, delta: Images) -> Images:
        return delta * (self.eps / _column(self.distance(delta)).clamp_min(self.eps))

    def distance(self, delta: Images) -> Losses:
        return delta.flatten(1).norm(dim=1)


def _shared(draw, images: Images, generator: torch.Generator | None) -> Images:
    """One draw for the whole batch, made where the generator lives: an image's result never depends on its
    neighbours."""
    device = images.device if generator is None else generator.device
    sample = draw((1, *images.shape[1:]), generator=generator, device=device, dtype=images.dtype)
    return sample.to(images.device).expand_as(images)


def _column(values: Losses) -> Float[Tensor, "batch 1 1 1"]:
    return values.view(-1, 1, 1, 1)
