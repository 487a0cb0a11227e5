from itertools import pairwise

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.schedule import NoiseSchedule, ResolutionShift

# diffusers hands tensors to numpy 2 in a deprecated way
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
STABLE_DIFFUSION = {
    0: 0.99915, 1: 0.99830, 100: 0.89422, 251: 0.67215, 300: 0.59050, 500: 0.27633,
    501: 0.27500, 600: 0.16078, 751: 0.05572, 900: 0.01415, 981: 0.00578, 999: 0.00466,
}  # fmt: skip
PIXEL = {100: 0.8951, 150: 0.7859, 250: 0.5214, 300: 0.3940, 500: 0.0778, 600: 0.0256}


def test_stable_diffusion_schedule_has_its_known_levels():
    signal = NoiseSchedule.scaled_linear().alphas_cumprod
    measured = signal[list(STABLE_DIFFUSION)]
    torch.testing.assert_close(measured, torch.tensor(list(STABLE_DIFFUSION.values())), atol=6e-6, rtol=0)


def test_pixel_schedule_has_its_known_levels():
    measured = NoiseSchedule.linear().alphas_cumprod[list(PIXEL)]
    torch.testing.assert_close(measured, torch.tensor(list(PIXEL.values())), atol=6e-5, rtol=0)


@pytest.mark.parametrize("make", [NoiseSchedule.linear, NoiseSchedule.scaled_linear, NoiseSchedule.cosine])
def test_diffusion_schedules_preserve_variance_and_add_noise_monotonically(make):
    schedule = make()
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(1000))
    assert (schedule.sigma.diff() >= 0).all()
    assert (schedule.sigma.dtype, len(schedule)) == (torch.float32, 1000)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_rectified_flow_is_a_straight_path_to_pure_noise(shift):
    schedule = NoiseSchedule.rectified_flow(shift=shift)
    torch.testing.assert_close(schedule.alpha + schedule.sigma, torch.ones(1000))
    assert schedule.level(999) == (0.0, 1.0)
    u = torch.arange(1, 1001) / 1000
    odds = schedule.sigma[:-1] / schedule.alpha[:-1]
    torch.testing.assert_close(odds, shift * u[:-1] / (1 - u[:-1]), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.PNDMScheduler(**SD15, skip_prk_steps=True),
        diffusers.DDIMScheduler(**SD15, clip_sample=False),
        diffusers.DDIMScheduler(**SD15, timestep_spacing="trailing", rescale_betas_zero_snr=True),
        diffusers.DDPMScheduler(),
        diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        diffusers.DDPMScheduler(100, trained_betas=torch.linspace(1e-3, 1e-2, 100).tolist()),
        diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_levels_and_timesteps_equal_those_of_diffusers(scheduler):
    schedule = NoiseSchedule.from_diffusers(scheduler)
    torch.testing.assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
    for steps in (1, 4, 7, 50):
        if isinstance(scheduler, diffusers.PNDMScheduler):
            expected = diffusers.DDIMScheduler.from_config(scheduler.config)
        else:
            expected = scheduler
        expected.set_timesteps(steps)
        assert schedule.timesteps(steps) == expected.timesteps.long().tolist()


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [2, 3, 10, 27, 999])
def test_every_spacing_equals_that_of_diffusers(spacing, steps):
    scheduler = diffusers.DDIMScheduler(**SD15, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    offset = 1 if spacing == "leading" else 0
    measured = NoiseSchedule.scaled_linear().timesteps(steps, spacing=spacing, offset=offset)
    assert measured == scheduler.timesteps.tolist()


def test_four_leading_steps_of_stable_diffusion_start_at_751():
    assert NoiseSchedule.scaled_linear().timesteps(4) == [751, 501, 251, 1]


def test_ddim_of_stable_diffusion_ends_at_timestep_zero_and_pixel_models_end_clean():
    latent = NoiseSchedule.from_diffusers(diffusers.PNDMScheduler(**SD15))
    assert latent.final == latent.level(0) == pytest.approx(NoiseSchedule.scaled_linear().final)
    assert NoiseSchedule.from_diffusers(diffusers.DDPMScheduler()).final == (1.0, 0.0)


def test_pixel_schedulers_clip_and_latent_ones_do_not():
    assert NoiseSchedule.from_diffusers(diffusers.DDPMScheduler()).clip == 1.0
    assert NoiseSchedule.from_diffusers(diffusers.DDIMScheduler(**SD15, clip_sample=False)).clip is None


@pytest.mark.parametrize("steps", [4, 28])
def test_steps_of_stable_diffusion_3_stand_within_one_timestep_of_those_of_diffusers(steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = NoiseSchedule.from_diffusers(scheduler)
    torch.testing.assert_close(schedule.sigma.flip(0), scheduler.sigmas)
    scheduler.set_timesteps(steps)
    measured = schedule.sigma[schedule.timesteps(steps)]
    torch.testing.assert_close(measured, scheduler.sigmas[:-1], atol=1.5e-3, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (64, 96)])
def test_steps_shift_with_resolution_as_in_flux(size):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    schedule = NoiseSchedule.from_diffusers(scheduler)
    tokens = size[0] * size[1] // 4
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(20, sigmas=torch.linspace(1, 1 / 20, 20).tolist(), mu=mu)
    measured = schedule.sigma[schedule.timesteps(20, size=size)]
    torch.testing.assert_close(measured, scheduler.sigmas[:-1], atol=5.1e-4, rtol=0)
    assert schedule.resolution_shift == ResolutionShift()


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 1000), spacing=st.sampled_from(["leading", "linspace", "trailing"]))
def test_timesteps_descend_and_stay_inside_the_schedule(steps, spacing):
    chosen = NoiseSchedule.scaled_linear().timesteps(steps, spacing=spacing)
    assert len(chosen) == steps
    assert chosen[0] <= 999
    assert chosen[-1] >= 0
    assert all(a > b for a, b in pairwise(chosen))


def test_noise_is_added_per_element_in_the_precision_of_z():
    schedule = NoiseSchedule.linear()
    z, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    z_t = schedule.add_noise(z, noise, torch.tensor([10, 900]))
    alpha, sigma = schedule.level(900)
    torch.testing.assert_close(z_t[1], alpha * z[1] + sigma * noise[1], rtol=0, atol=1e-14)
    assert schedule.at(torch.tensor([3]), z.float())[0].dtype == torch.float32


def test_mistakes_are_named():
    schedule = NoiseSchedule.linear()
    with pytest.raises(ValueError, match="expected between 1 and 1000 sampling steps; got 0"):
        schedule.timesteps(0)
    with pytest.raises(ValueError, match="unknown timestep spacing 'even'; available: leading"):
        schedule.timesteps(5, spacing="even")
    with pytest.raises(ValueError, match="one number per timestep"):
        NoiseSchedule(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="unknown beta schedule 'sigmoid'"):
        NoiseSchedule.from_diffusers(diffusers.DDPMScheduler(beta_schedule="sigmoid"))
    with pytest.raises(ValueError, match="noise levels of a EDMEulerScheduler are not supported"):
        NoiseSchedule.from_diffusers(diffusers.EDMEulerScheduler())
