"""Privacy: the contrast by hand, what is recognised, and a threshold that keeps its word."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearn.privacy import Memory, Reidentifier, contrast, view


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(count, 3, 4, 4, generator=generator), 16, mode="bilinear")


class Plain(nn.Module):
    """A picture's own values, centred, as its embedding."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(images.flatten(1) - 0.5, dim=1)


def test_the_contrast_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    one, other = (F.normalize(torch.randn(3, 4, generator=generator), dim=1) for _ in range(2))
    both, total = torch.cat([one, other]), 0.0
    for i in range(6):
        scores = [math.exp(float(both[i] @ both[j]) / 0.3) for j in range(6) if j != i]
        total -= math.log(math.exp(float(both[i] @ both[(i + 3) % 6]) / 0.3) / sum(scores))

    assert float(contrast(one, other, 0.3)) == pytest.approx(total / 6, rel=1e-5)


def test_a_view_shows_the_same_picture_elsewhere():
    images = pictures(8)
    seen = view(images, torch.Generator().manual_seed(0))

    assert seen.shape == images.shape
    assert 0 <= seen.min() <= seen.max() <= 1
    assert not torch.equal(seen, images)
    assert torch.equal(seen, view(images, torch.Generator().manual_seed(0)))


def test_copies_are_recognised_and_strangers_as_often_as_was_asked():
    private, others, fresh = pictures(50), pictures(400, 1), pictures(2000, 2)
    memory = Memory.of(Plain(), private, others, false_matches=0.05)

    assert memory.recognises(private).all()
    assert memory.recognises((private + 0.01 * torch.randn(private.shape)).clamp(0, 1)).all()
    assert memory.risk(others).share == pytest.approx(0.05, abs=0.003)
    assert memory.risk(fresh).share == pytest.approx(0.05, abs=0.03)


def test_similarity_is_that_of_the_nearest_private_picture():
    private, asked = pictures(7), pictures(5, 3)
    memory = Memory(Plain(), Plain()(private), 0.0)
    by_hand = [max(float(Plain()(a[None])[0] @ Plain()(p[None])[0]) for p in private) for a in asked]

    torch.testing.assert_close(memory.similarity(asked), torch.tensor(by_hand))


def test_a_fitted_network_finds_pictures_again_in_other_views():
    private, others = pictures(60), pictures(300, 1)
    network = Reidentifier.fitted(private, epochs=120, generator=torch.Generator().manual_seed(0))
    memory = Memory.of(network, private, others, false_matches=0.05)
    again = view(private, torch.Generator().manual_seed(9))

    assert memory.risk(again).share > 0.8
    assert memory.risk(pictures(300, 2)).share < 0.15


def test_a_fit_is_repeated_by_its_seed():
    seeds = (torch.Generator().manual_seed(4) for _ in range(2))
    one, other = (Reidentifier.fitted(pictures(8), epochs=1, generator=seed) for seed in seeds)

    assert torch.equal(one(pictures(2)), other(pictures(2)))


@pytest.mark.parametrize(("share", "count", "words"), [(0.0, 10, "above 0"), (0.01, 99, "give 100 or more")])
def test_thresholds_that_cannot_be_told_are_refused(share, count, words):
    with pytest.raises(ValueError, match=words):
        Memory.of(Plain(), pictures(3), pictures(count), false_matches=share)


def test_one_picture_cannot_be_told_from_others():
    with pytest.raises(ValueError, match="two or more"):
        Reidentifier.fitted(pictures(1))
