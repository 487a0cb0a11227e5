"""Losses that trap clean pictures, and pictures that are told apart by being easy."""

import pytest
import torch
from torch import nn

from unlearn.poisoned import anti_backdoor, flooded, isolated, trapped


@pytest.mark.parametrize("turned", [trapped, flooded])
def test_losses_below_the_level_are_ascended(turned):
    losses = torch.tensor([0.1, 0.4, 0.6, 2.0], requires_grad=True)
    turned(losses, 0.5).sum().backward()
    assert losses.grad.tolist() == [-1, -1, 1, 1]
    assert flooded(torch.tensor([0.2]), 0.5).item() == pytest.approx(0.8)
    assert trapped(torch.tensor([0.2]), 0.5).item() == pytest.approx(-0.2)


class Sure(nn.Module):
    """Sure of class 0 where the first pixel is bright."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, images):
        sure = self.scale * images[:, 0, 0, 0]
        return torch.stack([sure, torch.zeros_like(sure)], 1)


def test_the_easiest_pictures_are_isolated_and_then_unlearned():
    images, labels = torch.zeros(100, 1, 2, 2), torch.zeros(100, dtype=torch.long)
    images[[3, 50, 97], 0, 0, 0] = 1
    network = Sure()
    found = isolated(network, images, labels, share=0.03)
    assert found.nonzero()[:, 0].tolist() == [3, 50, 97]
    before = float(network.scale.detach())
    made = anti_backdoor(network, images, labels, share=0.03, epochs=3, learning_rate=1e3)
    assert float(made.scale.detach()) < before
    with pytest.raises(ValueError, match="is 0 of 100 pictures"):
        isolated(network, images, labels, share=0.001)
