"""DIRE and the first step's noise, in worlds where the right answer is known."""

from functools import partial

import pytest
import torch

from detect.dire import dire, first_step_noise, invert, reconstruct, sample, seen, timesteps
from diffusion.gaussian import GaussianDenoiser
from diffusion.ideal import IdealDenoiser
from diffusion.schedule import NoiseSchedule


@pytest.fixture
def pictures(generator):
    return torch.rand(10, 3, 16, 16, generator=generator)


@pytest.fixture
def ideal(pictures):
    return IdealDenoiser(pictures, NoiseSchedule.linear(clip=1.0))


def test_members_are_reconstructed_and_others_are_not(ideal, pictures, generator):
    others = torch.rand(6, 3, 16, 16, generator=generator)
    inside, outside = dire(ideal, pictures[:6]), dire(ideal, others)
    assert inside.shape == outside.shape == (6, 3, 16, 16)
    assert inside.mean() < 1e-6, inside.mean()
    assert outside.mean(dim=(1, 2, 3)).min() > 0.2


def test_what_others_become_is_a_member(ideal, pictures, generator):
    found = reconstruct(ideal, torch.rand(4, 3, 16, 16, generator=generator))
    nearest = torch.cdist(found.flatten(1), pictures.flatten(1)).amin(1)
    assert nearest.max() < 1e-3


def test_the_walk_equals_the_papers_formulas_in_float64(small_prior, generator):
    """In the paper's squares: x0 = x / sqrt(a) - sqrt(1 / a - 1) eps, clamped, and then eps again."""
    model = small_prior(16, ["cat"]).double()
    model.schedule.clip = 1.0
    images = torch.rand(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    no_class = torch.tensor([1, 1])
    taus = [50 * index for index in range(20)]
    kept = [*(float(bars[tau]) for tau in taus), 0.0]

    def step(x, tau, bar, bar_to):
        eps = model.unet(x, torch.full((2,), tau), class_labels=no_class, return_dict=False)[0]
        clean = (x / bar**0.5 - (1 / bar - 1) ** 0.5 * eps).clamp(-1, 1)
        eps = (x / bar**0.5 - clean) / (1 / bar - 1) ** 0.5
        return bar_to**0.5 * clean + (1 - bar_to) ** 0.5 * eps, eps

    with torch.no_grad():
        x, noises = 2 * images - 1, []
        for index in range(20):
            x, eps = step(x, taus[index], kept[index], kept[index + 1])
            noises.append(eps)
        torch.testing.assert_close(invert(model, 2 * images - 1, timesteps(model)), x)
        torch.testing.assert_close(x, noises[-1], msg="where no signal is left the walk ends at the noise")
        torch.testing.assert_close(seen(model, 2 * images - 1, 0)[1], noises[0])
        latent = x
        for index in reversed(range(20)):
            x, _ = step(x, taus[index], kept[index], kept[index - 1] if index else 1.0)
        torch.testing.assert_close(sample(model, latent, timesteps(model)), x)


def test_timesteps_are_those_of_the_paper():
    model = GaussianDenoiser(torch.zeros(3, 4, 4), 0.25, NoiseSchedule.linear())
    assert timesteps(model) == [50 * index for index in range(20)]


def test_the_first_noise_of_gaussian_data_has_a_closed_form(generator):
    """For data N(m, v) the noise seen in z is sigma (z - alpha m) / (alpha^2 v + sigma^2)."""
    model = GaussianDenoiser(torch.full((3, 4, 4), 0.1), 0.25, NoiseSchedule.linear())
    images = torch.rand(5, 3, 4, 4, generator=generator)
    alpha, sigma = model.schedule.level(0)
    z = model.encode(images)
    expected = sigma * (z - alpha * 0.1) / (alpha**2 * 0.25 + sigma**2)
    torch.testing.assert_close(first_step_noise(model, images), expected, atol=2e-5, rtol=1e-3)


def test_reconstruction_of_gaussian_data_gets_better_with_more_steps(generator):
    model = GaussianDenoiser(torch.zeros(3, 4, 4), 0.25, NoiseSchedule.linear())
    images = 0.5 + 0.25 * torch.randn(8, 3, 4, 4, generator=generator)
    errors = [float(dire(model, images, steps=steps).mean()) for steps in (10, 40, 200)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors


def test_a_picture_does_not_depend_on_its_neighbours_or_the_batch(small_prior, generator):
    model = small_prior(16, ["cat"])
    images = torch.rand(5, 3, 16, 16, generator=generator)
    for feature in (partial(dire, model, steps=3), partial(first_step_noise, model)):
        whole = feature(images, batch_size=5)
        torch.testing.assert_close(feature(images, batch_size=2), whole, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(feature(images.flip(0), batch_size=1).flip(0), whole, atol=1e-4, rtol=1e-4)
        assert not whole.requires_grad


def test_half_precision_is_refused_because_the_noise_is_lost_in_it(small_prior, generator):
    model = small_prior(16, ["cat"])
    images = torch.rand(2, 3, 16, 16, generator=generator)
    exact = first_step_noise(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(first_step_noise(model, images), exact)
        with torch.no_grad():
            halved = seen(model, model.encode(images), 0)[1]
    assert (halved - exact).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"dtype=torch\.float32"):
        first_step_noise(model.bfloat16(), images)
    with pytest.raises(ValueError, match=r"dtype=torch\.float32"):
        dire(model, images)


def test_latent_models_have_noise_of_latents_and_maps_of_images(generator):
    from diffusion.load import load

    model = load("builtin")
    images = torch.rand(1, 3, 64, 64, generator=generator)
    noise = first_step_noise(model, images)
    assert noise.shape == (1, model.latent_channels, 8, 8)
    assert dire(model, images, steps=2).shape == images.shape
