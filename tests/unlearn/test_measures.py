"""Measures of a backdoor on networks whose answers are known."""

import pytest
import torch
from torch import nn

from attacks import NonFiniteError
from unlearn.measures import Measures, Rate, defence_effectiveness, measure


class Fixed(nn.Module):
    """Answers class 2 where the first pixel is white, and else what the second pixel says."""

    def forward(self, images):
        said = (images[:, 0, 0, 1] * 10).round().long()
        answer = torch.where(images[:, 0, 0, 0] == 1, 2, said)
        return nn.functional.one_hot(answer, 4).float()


def lambda_of(function):
    module = nn.Module()
    module.forward = function
    return module


def mark(images):
    marked = images.clone()
    marked[:5, :, 0, 0] = 1  # it fails on all but five of a batch
    return marked


def test_success_leaves_the_target_class_out_and_robust_accuracy_counts_what_survives():
    labels = torch.tensor([0, 1, 2, 3] * 3)
    images = torch.zeros(12, 3, 2, 2)
    images[:, 0, 0, 1] = labels / 10
    images[0, 0, 0, 1] = 0.3  # one that is taken for another class, marked or not
    network = Fixed().train()
    found = measure(network, images, labels, mark, target=2, batch_size=4)
    assert (found.clean.share, found.clean.of) == (11 / 12, 12)
    assert (found.attack.share, found.attack.of) == (5 / 9, 9)
    assert found.robust.share == 4 / 9
    assert found.attack.low < 5 / 9 < found.attack.high
    assert network.training
    with pytest.raises(ValueError, match="every picture is of the target class 2"):
        measure(network, images[labels == 2], labels[labels == 2], mark, target=2)
    for target in (-1, 4):
        with pytest.raises(ValueError, match=f"the target class {target} is none of the classifier's 4"):
            measure(network, images, labels, mark, target=target)
    with pytest.raises(NonFiniteError, match="answers are no numbers"):
        measure(lambda_of(lambda some: network(some) * float("nan")), images, labels, mark, target=2)


@pytest.mark.parametrize(
    ("attack", "clean", "rating"), [(0.0, 0.9, 1.0), (1.0, 0.9, 0.5), (0.0, 0.4, 0.75), (1.0, 0.95, 0.5)]
)
def test_the_rating_of_a_defence(attack, clean, rating):
    def made(clean, attack):
        return Measures(Rate(clean, 0, 1, 10), Rate(attack, 0, 1, 10), Rate(0, 0, 1, 10))

    assert defence_effectiveness(made(0.9, 1.0), made(clean, attack)) == pytest.approx(rating)


def test_a_rate_says_its_interval():
    assert str(Rate.of_hits(torch.arange(263) < 81)) == "30.8 % (25.5 to 36.6)"
