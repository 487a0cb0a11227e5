import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks import L2, Linf

BALLS = [Linf(8 / 255), L2(0.5)]
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(3, 3, 6, 5, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("ball", BALLS, ids=repr)
@given(seed=seeds, scale=st.sampled_from([1e-6, 0.01, 1.0, 100.0]))
def test_projection_lands_inside_and_changes_nothing_that_was_inside(ball, seed, scale):
    delta = draw(seed, scale=scale)
    projected = ball.project(delta)
    assert (ball.distance(projected) <= ball.eps * (1 + 1e-6)).all()
    torch.testing.assert_close(ball.project(projected), projected)


@pytest.mark.parametrize("ball", BALLS, ids=repr)
@given(seed=seeds)
def test_projection_is_nearer_than_any_other_point_of_the_ball(ball, seed):
    delta, other = draw(seed), ball.project(draw(seed + 1))
    gap = (delta - ball.project(delta)).flatten(1).norm(dim=1)
    assert (gap <= (delta - other).flatten(1).norm(dim=1) + 1e-5).all()


@pytest.mark.parametrize("ball", BALLS, ids=repr)
@given(seed=seeds)
def test_steepest_step_has_unit_length_and_the_largest_inner_product(ball, seed):
    gradient = draw(seed)
    step = ball.steepest(gradient)
    torch.testing.assert_close(ball.distance(step), torch.ones(3))
    rival = draw(seed + 1)
    rival = rival / ball.distance(rival).view(-1, 1, 1, 1)
    assert ((gradient * step).flatten(1).sum(1) >= (gradient * rival).flatten(1).sum(1)).all()


@pytest.mark.parametrize("ball", BALLS, ids=repr)
def test_random_start_is_inside_and_equal_for_every_image(ball, generator):
    images = torch.rand(4, 3, 8, 8)
    delta = ball.random_start(images, generator)
    assert (ball.distance(delta) <= ball.eps * (1 + 1e-6)).all()
    torch.testing.assert_close(delta, delta[:1].expand_as(delta))


def test_random_start_in_l2_is_uniform_in_volume(generator):
    # In dimension n the radius of a uniform point has mean n / (n + 1) of the ball's.
    ball, images = L2(2.0), torch.zeros(1, 1, 1, 2)
    radii = torch.cat([ball.distance(ball.random_start(images, generator)) for _ in range(4000)])
    assert abs(radii.mean().item() / 2 - 2 / 3) < 0.015


def test_zero_gradient_gives_zero_step_and_not_nan():
    assert torch.equal(L2(1.0).steepest(torch.zeros(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("eps", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [Linf, L2])
def test_a_radius_must_be_positive_and_finite(kind, eps):
    with pytest.raises(ValueError, match="positive radius"):
        kind(eps)
