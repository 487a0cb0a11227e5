"""Averages of a network's weights over training: exponential, or equal shares."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Rate = Callable[[int], float]


@dataclass(frozen=True)
class Ema:
    """Exponential moving average. `ramp` lets it begin quickly: min(decay, (1 + k) / (10 + k)) at its k-th
    update (Gowal et al., 2020, arXiv 2010.03593)."""

    decay: float = 0.995
    ramp: bool = True
    from_epoch: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"the decay of an average lies in [0, 1); got {self.decay}")

    def kept(self, updates: int) -> float:
        """The share of the average that its update number `updates` (0, 1, …) leaves."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.ramp else self.decay


@dataclass(frozen=True)
class Swa:
    """Equal shares of all steps from an epoch on (Izmailov et al., UAI 2018, arXiv 1803.05407)."""

    from_epoch: int = 0

    def kept(self, updates: int) -> float:
        """The share of the average that its update number `updates` (0, 1, …) leaves."""
        return updates / (updates + 1)


class WeightAverage(nn.Module):
    """A copy of a network that holds averaged weights, running statistics of normalisation included.

    Until the first update it follows the network.
    """

    def __init__(self, network: nn.Module, rule: Ema | Swa) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.rule = rule
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def train(self, mode: bool = True) -> "WeightAverage":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    @torch.no_grad()
    def update(self, network: nn.Module, epoch: int) -> None:
        """Take in the weights of `network`, of the epoch (0, 1, …) that is running."""
        begun = epoch >= self.rule.from_epoch
        kept = self.rule.kept(int(self.updates)) if begun else 0.0
        for average, value in zip(_state(self.network), _state(network), strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - kept)
            else:
                average.copy_(value)
        self.updates += int(begun)


def _state(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
