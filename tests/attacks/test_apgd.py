import pytest
import torch
from torch import nn

from attacks import L2, Linf
from attacks.adaptive import Expected
from attacks.apgd import apgd, checkpoints

IMAGES = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHTS = torch.randn(75, generator=torch.Generator().manual_seed(1), dtype=torch.float64).view(3, 5, 5)


def linear(images):
    return (images * WEIGHTS).flatten(1).sum(1)


def test_checkpoints_are_the_papers():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_linf_reaches_the_optimum_of_a_linear_objective():
    found = apgd(linear, IMAGES, Linf(8 / 255), eps=8 / 255, steps=30)
    torch.testing.assert_close(found, (IMAGES + 8 / 255 * WEIGHTS.sign()).clamp(0, 1), rtol=0, atol=1e-6)


def test_l2_reaches_the_optimum_of_a_linear_objective():
    inner = 0.3 + 0.4 * IMAGES  # no pixel meets the box
    found = apgd(linear, inner, L2(0.2), eps=0.2, steps=40)
    torch.testing.assert_close(found, inner + 0.2 * WEIGHTS / WEIGHTS.norm(), rtol=0, atol=1e-6)


def test_it_beats_plain_steps_on_a_curved_objective():
    """Twin valleys: a step that is never shortened jumps over the summit."""
    peak = (IMAGES + 0.01 * WEIGHTS.sign()).clamp(0, 1)

    def objective(images):
        return -(images - peak).square().flatten(1).sum(1)

    found = apgd(objective, IMAGES, Linf(8 / 255), eps=8 / 255, steps=100)
    assert (found - peak).abs().max() < 1e-3


def test_an_images_result_does_not_depend_on_its_neighbours():
    together, alone = (
        apgd(linear, batch, Linf(0.05), eps=0.05, steps=10, generator=torch.Generator().manual_seed(3))
        for batch in (IMAGES, IMAGES[2:3])
    )
    torch.testing.assert_close(alone, together[2:3])


@pytest.mark.parametrize("fixed", [True, False])
def test_a_random_objective_is_climbed_in_the_mean(fixed):
    class Noisy(nn.Module):
        """The right class loses where the images grow along the weights, give or take the draw."""

        def forward(self, images, seeds):
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
            noise = torch.stack([torch.randn((), generator=generator) for generator in generators])
            score = linear(images) + 3 * noise
            return torch.stack([-score, score], 1)

    labels = torch.zeros(4, dtype=torch.long)
    objective = Expected(Noisy(), labels, draws=30, fixed=fixed, generator=torch.Generator().manual_seed(0))
    found = apgd(objective, IMAGES, Linf(0.05), eps=0.05, steps=30, redraw=objective.redraw)
    best = (IMAGES + 0.05 * WEIGHTS.sign()).clamp(0, 1)
    assert ((linear(found) - linear(IMAGES)) / (linear(best) - linear(IMAGES))).min() > 0.999
