"""Rounding stays inside the ball, in whole levels of the file."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from imaging.quantize import quantize


def integers(images: torch.Tensor, levels: int) -> torch.Tensor:
    scaled = images.double() * levels
    assert (scaled - scaled.round()).abs().max() < 0.01
    return scaled.round().long()


@pytest.mark.parametrize("levels", [255, 65535])
@given(seed=st.integers(0, 1000), budget=st.integers(0, 32), push=st.floats(0.1, 3))
def test_every_value_is_a_level_within_the_budget(levels, seed, budget, push):
    generator = torch.Generator().manual_seed(seed)
    original = torch.randint(0, levels + 1, (2, 3, 9, 7), generator=generator).float() / levels
    eps = budget / 255
    perturbed = original + push * eps * torch.randn(original.shape, generator=generator)
    rounded = quantize(perturbed, original, eps, levels=levels)
    change = integers(rounded, levels) - integers(original, levels)
    assert change.abs().max() <= budget * levels // 255
    assert rounded.min() >= 0
    assert rounded.max() <= 1


def test_rounding_goes_to_the_nearest_level_inside_the_budget():
    original = torch.full((1, 3, 1, 4), 100 / 255)
    perturbed = (torch.tensor([103.4, 103.6, 107.9, 112.0]) / 255).expand(1, 3, 1, 4)
    levels = integers(quantize(perturbed, original, 8 / 255), 255)
    assert levels[0, 0, 0].tolist() == [103, 104, 108, 108]


@given(st.integers(0, 255))
def test_an_eps_of_k_255ths_allows_exactly_k_levels(k):
    original = torch.zeros(1, 3, 1, 1)
    assert integers(quantize(torch.ones(1, 3, 1, 1), original, k / 255), 255).flatten().tolist() == [k] * 3


def test_an_untouched_image_stays_untouched_at_all_levels():
    for levels in (255, 65535):
        original = (torch.arange(levels + 1) / levels).view(1, 1, -1, 1).expand(1, 3, -1, 1)
        assert torch.equal(
            integers(quantize(original, original, 8 / 255, levels=levels), levels), integers(original, levels)
        )


def test_perturbations_on_the_boundary_neither_exceed_nor_fall_short():
    # Flooring instead moves a fifth of these one level out of the ball; see the docstring of quantize.
    original = torch.arange(8, 248).float().view(1, 1, -1, 1).expand(1, 3, -1, 1) / 255
    for sign in (-1, 1):
        perturbed = 2 * ((2 * original - 1 + sign * 16 / 255 + 1) / 2) - 1  # through [-1, 1] and back
        rounded = quantize((perturbed + 1) / 2, original, 8 / 255)
        assert (integers(rounded, 255) - integers(original, 255)).unique().tolist() == [8 * sign]


def test_half_precision_input_is_rounded_in_float32():
    original = torch.arange(256).view(1, 1, -1, 1).expand(1, 3, -1, 1) / 255
    assert quantize(original.half(), original, 0.0).dtype == torch.float32
    assert torch.equal(integers(quantize(original.half(), original, 0.0), 255), integers(original, 255))


def test_bad_arguments_are_refused():
    images = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="differ in shape"):
        quantize(images, torch.zeros(1, 3, 4, 5), 8 / 255)
    with pytest.raises(ValueError, match="eps=-1"):
        quantize(images, images, -1.0)
    with pytest.raises(ValueError, match="levels=256"):
        quantize(images, images, 0.1, levels=256)
    with pytest.raises(ValueError, match="finite"):
        quantize(images / 0, images, 0.1)
