"""Adversarial weight perturbation (Wu, Xia and Wang, NeurIPS 2020, arXiv 2004.05884)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Awp:
    """Train at the worst weights nearby: `gamma` times the norm of each layer away, from `from_epoch` on.

    The paper takes 0.01 from the start for adversarial training, 0.005 after ten epochs for TRADES.
    """

    gamma: float = 0.01
    from_epoch: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma is a share of each layer's norm, such as 0.01; got {self.gamma}")


def perturbed_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that are perturbed: of convolutions and linear layers, no bias, no normalisation."""
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim > 1 and "weight" in name
    }


def perturbation(
    loss: Tensor,
    weights: Mapping[str, nn.Parameter],
    gamma: float,
    *,
    mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> dict[str, Tensor]:
    """Return the step up the gradient of `loss` whose norm is `gamma` times that of each layer.

    `mean` averages a gradient over processes, which would otherwise perturb their weights apart.

    The released code takes the step on a copy of the network; only its direction is used, so the gradient
    itself will do, provided that the loss was computed without touching running statistics.
    """
    gradients = [mean(each) for each in torch.autograd.grad(loss, list(weights.values()))]
    return {
        name: gamma * gradient * (weight.detach().norm() / (gradient.norm() + 1e-20))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


@torch.no_grad()
def add(weights: Mapping[str, nn.Parameter], perturbation: Mapping[str, Tensor], *, sign: int = 1) -> None:
    """Add a perturbation to the weights in place, or with `sign` -1 take it back."""
    for name, change in perturbation.items():
        weights[name].add_(change, alpha=sign)
