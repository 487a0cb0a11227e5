"""Displacements from random views, and attacks that begin at a pattern."""

import pytest
import torch

from attacks import Linf, pgd
from attacks.displacement import Begun, displacement, rescaled
from attacks.objectives import value_and_gradient

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MATRIX = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def see(images):
    return torch.einsum("oc,nchw->nohw", MATRIX, images)


def stripes(height, width):
    return torch.where(torch.arange(width) % 2 == 0, 1.0, -1.0).expand(height, width)


def test_a_displacement_of_a_linear_network_has_the_closed_form():
    moved = displacement(see, IMAGES, lambda: lambda images: images)
    perturbed = IMAGES + 0.1 * torch.randn_like(IMAGES)
    scores, gradient = value_and_gradient(moved, perturbed)
    for index in range(2):
        delta, length = see(perturbed - IMAGES)[index], see(IMAGES)[index].norm()
        torch.testing.assert_close(scores[index], delta.norm() / length)
        expected = torch.einsum("oc,ohw->chw", MATRIX, delta) / (delta.norm() * length)
        torch.testing.assert_close(gradient[index], expected)


def test_both_pictures_are_seen_through_the_same_view_drawn_anew_each_time():
    factors = iter([2.0, -3.0])

    def draw():
        factor = next(factors)
        return lambda images: factor * images + 1

    moved = displacement(lambda view: view - 1, IMAGES, draw)
    for _ in range(2):
        torch.testing.assert_close(moved(1.5 * IMAGES), torch.full((2,), 0.5, dtype=torch.float64))


def test_at_the_picture_itself_the_gradient_is_zero_and_finite():
    scores, gradient = value_and_gradient(displacement(see, IMAGES, lambda: lambda images: images), IMAGES)
    assert scores.abs().max() == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("smallest", [0.5, 0.3])
def test_scales_fill_their_range_and_sides_are_multiples(smallest):
    draw = rescaled(smallest, multiple=4, generator=torch.Generator().manual_seed(0))
    images = torch.rand(1, 3, 64, 96)
    sizes = [tuple(draw()(images).shape[-2:]) for _ in range(200)]
    assert all(height % 4 == width % 4 == 0 for height, width in sizes)
    assert min(height for height, _ in sizes) == round(64 * smallest / 4) * 4
    assert max(sizes) == (64, 96)
    assert len(set(sizes)) > 8


def test_a_view_keeps_flat_colours_and_the_range_and_scale_one_changes_nothing():
    draw = rescaled(0.5, multiple=4, generator=torch.Generator().manual_seed(0))
    flat, sharp = torch.full((1, 3, 16, 16), 0.3), torch.rand(1, 3, 16, 16).round()
    for _ in range(5):
        view = draw()
        assert (view(flat) - 0.3).abs().max() < 1e-5
        assert 0 <= view(sharp).min() <= view(sharp).max() <= 1
    whole = rescaled(1.0, multiple=4, generator=None)()
    torch.testing.assert_close(whole(sharp), sharp)


def test_the_same_generator_draws_the_same_scales_for_every_batch():
    one, many = (
        [rescaled(0.5, multiple=4, generator=torch.Generator().manual_seed(3))() for _ in range(2)]
        for _ in range(2)
    )
    images = torch.rand(3, 3, 32, 32)
    for alone, together in zip(one, many, strict=True):
        torch.testing.assert_close(alone(images[1:2]), together(images)[1:2])


def test_a_scale_out_of_range_is_refused():
    for smallest in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="smallest scale lies above 0 and is at most 1"):
            rescaled(smallest, multiple=8, generator=None)


def test_an_attack_begins_at_the_pattern_and_keeps_to_the_ball():
    ball = Begun(Linf(4 / 255), lambda *size: 2 / 255 * stripes(*size))
    seen = []

    def objective(images):
        seen.append(images.detach().clone())
        return images.flatten(1).sum(1)

    grey = torch.full((2, 3, 6, 8), 0.5)
    found = pgd(objective, grey, ball, steps=9, step_size=1 / 255, random_start=True)
    torch.testing.assert_close(seen[0] - grey, (2 / 255 * stripes(6, 8)).expand_as(grey))
    torch.testing.assert_close(found, grey + 4 / 255)
    assert ball.distance(found - grey).tolist() == pytest.approx([4 / 255] * 2)


def test_a_pattern_beyond_the_ball_is_cut_to_it():
    ball = Begun(Linf(4 / 255), lambda *size: stripes(*size))
    assert ball.random_start(IMAGES, None).abs().max() == pytest.approx(4 / 255)
