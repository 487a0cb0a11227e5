"""Catastrophic overfitting of adversarial training with one step, noticed in time."""

import torch
from torch import Tensor, nn


class CollapseGuard(nn.Module):
    """Says when robust accuracy has fallen by more than `drop` from one epoch to the next (Wong, Rice and
    Kolter, ICLR 2020, arXiv 2001.03994): within an epoch, single-step training can forget every attack but
    its own.

    Robust accuracy is measured on a batch of training images by an attack of `steps` steps. With `restore`
    the weights go back to those of the epoch before.
    """

    def __init__(self, drop: float = 0.2, steps: int = 5, restore: bool = True) -> None:
        super().__init__()
        if not 0 < drop < 1 or steps < 1:
            raise ValueError(f"a guard watches for a drop in (0, 1) by 1 step or more; got {drop}, {steps}")
        self.drop, self.steps, self.restore = drop, steps, restore
        self.register_buffer("before", torch.zeros(()))

    def collapsed(self, accuracy: Tensor) -> bool:
        """Take the accuracy after an epoch; whether it has collapsed, in which case it is not remembered."""
        fallen = bool(self.before - accuracy > self.drop)
        if not fallen:
            self.before.copy_(accuracy)
        return fallen
