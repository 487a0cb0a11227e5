"""Purifying Gaussian data is affine: every sampler's gain and output variance are known numbers."""

import pytest
import torch

from purify import PRESETS, DiffPure, LikelihoodMaximisation

# For data of variance 0.25: gain of the input, variance that the chain's own noise adds.
KNOWN = {
    ("ddpm", 100, 100): (0.685298282, 0.129578024),
    ("ddpm", 100, 10): (0.685298282, 0.110131856),
    ("ddim", 100, 100): (0.826254281, 0.078376691),
    ("ddim", 100, 5): (0.798257239, 0.073155201),
    ("ddpm", 200, 5): (0.325791471, 0.144355176),
}
CONTINUOUS = {
    ("sde", 75): (0.790654735, 0.093097058),
    ("sde", 100): (0.681726636, 0.133246048),
    ("sde", 150): (0.479123383, 0.192306332),
    ("ode", 100): (0.826218009, 0.078369810),
}


def gain(purifier):
    """The derivative of the purified image, by autograd, with fixed noise; it is the same everywhere."""
    images = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    purified = purifier(images, torch.tensor([3]))
    cotangent = torch.randn(purified.shape, dtype=torch.float64)
    gains = torch.autograd.grad(purified, images, cotangent)[0] / cotangent
    torch.testing.assert_close(gains, gains.mean().expand_as(gains))
    return gains.mean().item()


def variance(purifier, draws=4000):
    """The variance of the output in [-1, 1] over the noise of the chain."""
    images = torch.full((draws, 3, 4, 4), 0.5, dtype=torch.float64)
    with torch.no_grad():
        return (2 * purifier(images, torch.arange(draws)) - 1).var().item()


@pytest.mark.parametrize(("setting", "known"), KNOWN.items(), ids=str)
def test_gain_and_variance_of_a_gaussian_world(gaussian, setting, known):
    sampler, t, steps = setting
    purifier = DiffPure(gaussian, t=t, steps=steps, sampler=sampler, clamp=False)
    assert gain(purifier) == pytest.approx(known[0], abs=1e-6)
    assert variance(purifier) == pytest.approx(known[1], rel=0.015)


@pytest.mark.parametrize(("setting", "known"), CONTINUOUS.items(), ids=str)
def test_gain_and_variance_of_the_differential_equations(continuous_gaussian, setting, known):
    sampler, t = setting
    purifier = DiffPure(continuous_gaussian, t=t, sampler=sampler, clamp=False)
    assert gain(purifier) == pytest.approx(known[0], abs=1e-6)
    assert variance(purifier) == pytest.approx(known[1], rel=0.015)


def test_the_gradual_schedule_multiplies_its_rounds(gaussian):
    purifier = DiffPure(gaussian, rounds=PRESETS["gradual-cifar"], clamp=False)
    assert gain(purifier) == pytest.approx(0.222683153, abs=1e-6)


def test_dpm_solver_approaches_the_probability_flow(gaussian):
    """Its limit is the gain sqrt(signal * variance / (signal * variance + noise))."""
    signal = gaussian.schedule.level(99)[0] ** 2
    limit = (signal * 0.25 / (signal * 0.25 + 1 - signal)) ** 0.5
    errors = [
        abs(gain(DiffPure(gaussian, t=100, steps=n, sampler="dpm-solver", clamp=False)) - limit)
        for n in (5, 20, 100)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_likelihood_maximisation_moves_towards_the_mean(gaussian):
    images = torch.full((2, 3, 4, 4), 0.9, dtype=torch.float64)
    purified = LikelihoodMaximisation(gaussian, steps=3)(images)
    assert (purified - 0.5).abs().mean() < (images - 0.5).abs().mean()
