"""Inverted triggers: small where there is a backdoor, and a class that stands out."""

import pytest
import torch
from torch import nn

from unlearn.inversion import Inverted, Scanned, invert, scan


class Backdoored(nn.Module):
    """Says the brightest of four columns; class 2 wherever the lower right pixel is white."""

    def forward(self, images):
        logits = 20 * images.mean((1, 2)).unflatten(-1, (4, -1)).mean(-1)
        return logits + 40 * images[:, :1, -1, -1] ** 4 * torch.tensor([0.0, 0, 1, 0])


def _pictures(count=64):
    """Grey noise, one of whose four columns is brighter by far."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.rand(count, 3, 8, 8, generator=generator)
    column = torch.randint(4, (count,), generator=generator)
    bright = nn.functional.one_hot(column, 4).repeat_interleave(2, 1)
    return images + 0.25 * bright[:, None, None]


def _seeded():
    return torch.Generator().manual_seed(0)


def test_the_trigger_of_a_backdoored_class_is_small_and_where_it_is():
    network, images = Backdoored(), _pictures()
    found = scan(network, images, steps=500, generator=_seeded())
    sizes = [each.size for each in found.triggers]
    assert sizes.index(min(sizes)) == 2
    assert sizes[2] < 0.5 * sorted(sizes)[1]
    backdoor = found.triggers[2]
    assert backdoor.success >= 0.99
    assert int(backdoor.mask.flatten().argmax()) == 63
    assert (network(backdoor(images)).argmax(1) == 2).float().mean() > 0.95
    assert found.anomalies[2] == max(found.anomalies)


def test_anomalies_are_deviations_from_the_median_towards_small():
    def sized(value):
        return Inverted(0, torch.full((1, 1, 1), float(value)), torch.zeros(1, 1, 1), 1.0)

    found = Scanned([sized(each) for each in (10, 11, 12, 13, 2)])
    assert found.anomalies == pytest.approx([1 / 1.4826, 0, -1 / 1.4826, -2 / 1.4826, 9 / 1.4826])
    assert [each.size for each in found.suspects] == [2]


def test_a_trigger_replaces_as_much_as_its_mask_says():
    mask, pattern = torch.tensor([[[0.0, 0.5, 1.0]]]), torch.tensor([[[1.0, 1.0, 1.0]]])
    images = torch.full((2, 1, 1, 3), 0.2)
    torch.testing.assert_close(
        Inverted(0, mask, pattern, 1.0)(images)[0, 0, 0], torch.tensor([0.2, 0.6, 1.0])
    )


def test_a_class_that_cannot_be_reached_gets_what_was_tried_last():
    class Deaf(nn.Module):
        def forward(self, images):
            return 0 * images.mean((1, 2, 3))[:, None] + torch.tensor([1.0, 0, 0])

    found = invert(Deaf(), _pictures(), 1, steps=5, generator=_seeded())
    assert found.success == 0
    with pytest.raises(ValueError, match="three or more"):
        scan(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), _pictures())
