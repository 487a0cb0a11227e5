"""The balances of two teachers: which one weighs more, and how warm their predictions are.

Both are updated once per step from means over the whole batch; with several processes the caller passes
means over all of them, or the processes drift apart. Their state is in buffers, and so in checkpoints.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

ROBUST, NATURAL = 0, 1
NAMES = ("robust", "natural")


class LossBalance(nn.Module):
    """Weights of two terms, the slower-learning one gaining: MTARD's (Zhao et al., ECCV 2022), and B-MTARD's
    Normalization Loss Balance, which are the same rule.

    Relative losses are measured against the very first step of the training, also after a resumption.
    """

    def __init__(self, rate: float = 0.025, power: float = 1.0) -> None:
        super().__init__()
        self.rate, self.power = rate, power
        self.register_buffer("weights", torch.full((2,), 0.5))
        self.register_buffer("first", torch.zeros(2))

    def update(self, losses: Mapping[str, Tensor], decay: float = 1.0) -> dict[str, Tensor]:
        """Take the batch means of both losses, "robust" and "natural", and return their new weights.

        `decay` is what the learning rate has been multiplied by so far, and the balance's rate with it.
        """
        now = torch.stack([losses[name].detach() for name in NAMES]).to(self.weights)
        if not self.first.any():
            self.first.copy_(now)
        relative = (now / self.first) ** self.power
        moved = self.weights - self.rate * decay * (self.weights - relative / relative.sum())
        moved = moved.clamp_min(0)
        self.weights.copy_(moved / moved.sum())
        # copies, because the buffer changes before the graph that these weights are in is used
        return {name: weight.clone() for name, weight in zip(NAMES, self.weights, strict=True)}


class EntropyBalance(nn.Module):
    """Temperatures of two teachers, moved until their predictions are equally uncertain: the Entropy-Based
    Balance of B-MTARD (Zhao et al., TPAMI 2024, arXiv 2306.16170)."""

    def __init__(self, rate: float = 0.001, lowest: float = 1.0, highest: float = 10.0) -> None:
        super().__init__()
        self.rate, self.lowest, self.highest = rate, lowest, highest
        self.register_buffer("temperatures", torch.ones(2))

    @property
    def robust(self) -> Tensor:
        """The robust teacher's temperature, a copy."""
        return self.temperatures[ROBUST].clone()

    @property
    def natural(self) -> Tensor:
        """The natural teacher's temperature, a copy."""
        return self.temperatures[NATURAL].clone()

    def update(self, robust: Tensor, natural: Tensor, decay: float = 1.0) -> None:
        """Take the batch means of the entropies at the present temperatures, and move these by one step."""
        towards = torch.stack([(robust / natural - 1).sign(), (natural / robust - 1).sign()])
        moved = self.temperatures - self.rate * decay * towards.detach().to(self.temperatures)
        self.temperatures.copy_(moved.clamp(self.lowest, self.highest))
