"""What holds for every purifier, and what each one's formulas say."""

import math

import pytest
import torch
from torch import nn

from diffusion.model import to_clean
from diffusion.samplers import ddim, dpm_solver_pp_2m
from diffusion.schedule import NoiseSchedule
from diffusion.tape import NoiseTape
from purify import (
    GDMP,
    AdverseCleaner,
    Blur,
    Crop,
    DiffPure,
    FreqPure,
    Jpeg,
    LikelihoodMaximisation,
    ManiPure,
    Noise,
    PurifiedClassifier,
    Quantize,
    Resize,
    Resized,
    Tiled,
)
from purify.frequency import band_weights, keep_low, radii
from purify.simple import bilateral_filter

ALL = {
    "diffpure": lambda model: DiffPure(model, t=50, steps=3),
    "gdmp": lambda model: GDMP(model, t=20, steps=3, rounds=2),
    "freqpure": lambda model: FreqPure(model, t=50, steps=3),
    "freqpure-denoised": lambda model: FreqPure(model, t=50, steps=3, reference="denoised"),
    "mani-literal": lambda model: ManiPure(model, t=50, steps=3, mode="literal"),
    "mani-spatial": lambda model: ManiPure(model, t=50, steps=3, mode="spatial"),
    "mani-spectral": lambda model: ManiPure(model, t=50, steps=3, mode="spectral"),
    "likelihood": lambda model: LikelihoodMaximisation(model, steps=2),
    "tiled": lambda model: Tiled(DiffPure(model, t=10, steps=1), size=8, overlap=4, rounds=2),
    "resized": lambda model: Resized(DiffPure(model, t=20, steps=2), 8),
    "jpeg": lambda model: Jpeg(50),
    "resize": lambda model: Resize(0.5),
    "blur": lambda model: Blur(0.8),
    "quantize": lambda model: Quantize(3),
    "crop": lambda model: Crop(20),
    "noise": lambda model: Noise(0.1),
    "cleaner": lambda model: AdverseCleaner(bilateral=2, guided=1),
}
RANDOM = [name for name in ALL if name not in ("jpeg", "resize", "blur", "quantize", "crop", "cleaner")]
IMAGES = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", ALL)
def test_images_stay_images(network, name):
    purified = ALL[name](network)(IMAGES)
    assert purified.shape == IMAGES.shape
    assert purified.dtype == IMAGES.dtype
    assert torch.isfinite(purified).all()
    assert purified.min() >= 0
    assert purified.max() <= 1


@pytest.mark.parametrize("name", ALL)
def test_a_seed_settles_the_result_whatever_the_batch(network, name):
    purifier, seeds = ALL[name](network), torch.tensor([7, 8, 9])
    together = purifier(IMAGES, seeds)
    torch.testing.assert_close(purifier(IMAGES, seeds), together, rtol=0, atol=0)
    alone = torch.cat([purifier(IMAGES[i : i + 1], seeds[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", RANDOM)
def test_two_draws_differ_and_a_seeded_copy_repeats_itself(network, name):
    purifier = ALL[name](network)
    assert not torch.equal(purifier(IMAGES), purifier(IMAGES))
    copy = purifier.seeded(3)
    assert torch.equal(copy(IMAGES), copy(IMAGES))
    assert not torch.equal(copy(IMAGES), purifier.seeded(4)(IMAGES))
    assert not torch.equal(purifier(IMAGES), purifier(IMAGES))
    # each image of a seeded copy is dealt the same noise
    torch.testing.assert_close(copy(IMAGES[1:2]), copy(IMAGES)[1:2])


def test_the_global_generator_is_the_only_state(network):
    purifier = DiffPure(network, t=50, steps=3)
    torch.manual_seed(1)
    first = purifier(IMAGES)
    torch.manual_seed(1)
    assert torch.equal(purifier(IMAGES), first)


def test_a_purifier_in_a_training_model_keeps_its_prior_in_evaluation(network):
    model = nn.Sequential(DiffPure(network, t=10, steps=1), nn.Flatten(), nn.Linear(432, 2)).train()
    assert not any(module.training for module in model[0].model.modules())
    assert [parameter.requires_grad for parameter in model[0].parameters()].count(True) == 0
    assert model[2].training


def test_zero_steps_into_the_noise_leave_the_picture(network):
    torch.testing.assert_close(DiffPure(network, t=0)(IMAGES), IMAGES, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (2 * IMAGES - 1, r"in \[0, 1\]; got -.* normalisation belongs inside the classifier"),
        (255 * IMAGES, "divide bytes by 255"),
        (IMAGES.new_full((1, 3, 8, 8), torch.nan), "got nan"),
        (IMAGES[0], "float images .* got float64 of shape"),
        ((255 * IMAGES).byte(), "got uint8"),
        (IMAGES[:, :1], "random knows images of 3 channels; got 1"),
        (torch.rand(1, 3, 32, 32), r"made for images of 12x12; got 32x32: wrap .* Resized\(…, 12\)"),
        (torch.rand(1, 3, 4, 4), "made for images of 12x12; got 4x4"),
    ],
)
def test_wrong_images_are_refused_in_one_line(network, images, message):
    with pytest.raises(ValueError, match=message) as caught:
        DiffPure(network, t=10, steps=1)(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: DiffPure(m, t=1001), "from 1 to 1000; got 1001"),
        (lambda m: DiffPure(m, t=-1), "from 1 to 1000; got -1"),
        (lambda m: DiffPure(m, t=10, steps=11), "takes 1 to 10 steps; got 11"),
        (lambda m: DiffPure(m, t=10, steps=0), "takes 1 to 10 steps; got 0"),
        (lambda m: DiffPure(m, sampler="dim"), "unknown sampler 'dim'; did you mean 'ddim'"),
        (lambda m: DiffPure(m, rounds=0), "at least one round"),
        (lambda m: ManiPure(m, mode="spektral"), "did you mean 'spectral'"),
        (lambda m: FreqPure(m, reference="none"), "available: input, denoised"),
        (lambda m: GDMP(m, similarity="l2"), "'mse' or 'ssim'"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_made(network, make, message):
    with pytest.raises(ValueError, match=message):
        make(network)


def test_the_grid_counts_steps():
    assert NoiseSchedule.linear().lowest(200, 5) == [199, 159, 119, 79, 39]
    assert NoiseSchedule.linear().lowest(3, 3) == [2, 1, 0]


@pytest.mark.parametrize(("name", "sampler"), [("ddim", ddim), ("dpm-solver", dpm_solver_pp_2m)])
def test_reverse_walks_equal_the_samplers(network, name, sampler):
    purifier = DiffPure(network, t=100, steps=4, sampler=name, clamp=False)
    seeds = torch.tensor([1, 2, 3])
    state = purifier.chain(seeds)[0](IMAGES, IMAGES)
    z_t = purifier.chain(seeds)[1](state, IMAGES)
    clip, network.schedule.clip = network.schedule.clip, None
    expected = sampler(network, z_t, timesteps=network.schedule.lowest(100, 4))
    network.schedule.clip = clip
    torch.testing.assert_close(purifier(IMAGES, seeds), network.decode(expected, clamp=False))


def test_a_predicted_picture_beyond_the_range_is_not_clipped(gaussian):
    """Clipping inside the chain would zero an attacker's gradient."""
    images = torch.ones(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    purified = DiffPure(gaussian, t=10, steps=2, clamp=False)(images, torch.tensor([0]))
    assert torch.autograd.grad(purified.sum(), images)[0].min() > 0.5


# ---- GDMP


def test_gdmp_pulls_towards_the_noised_input_by_its_formula(network):
    """One guided step minus the plain one is s_t Sigma_t times the mean squared error's gradient."""
    guided = GDMP(network, t=20, steps=2, rounds=1, scale=500.0, eps=8 / 255)
    plain = DiffPure(network, t=20, steps=2)
    seeds = torch.tensor([1, 2, 3])
    state = guided.chain(seeds)[0](IMAGES, IMAGES)
    z_t = guided.chain(seeds)[1](state, IMAGES)
    difference = plain.chain(seeds)[2](z_t, IMAGES) - guided.chain(seeds)[2](z_t, IMAGES)
    alpha, sigma = network.schedule.level(19)
    alpha_to, sigma_to = network.schedule.level(9)
    beta = 1 - (alpha / alpha_to) ** 2
    variance = sigma_to**2 / sigma**2 * beta
    m = (8 * 2 / 255) / 3 / 500.0
    strength = sigma / (m * alpha)
    noised = alpha * (2 * IMAGES - 1) + sigma * NoiseTape(seeds).noise(2, z_t, 1)
    expected = strength * variance * 2 * (z_t - noised) / z_t[0].numel()
    torch.testing.assert_close(difference, expected)


def test_gdmp_refuses_a_pull_that_would_overshoot(network):
    GDMP(network, t=20, steps=3, rounds=1)(IMAGES)
    with pytest.raises(ValueError, match="would overshoot the input"):
        GDMP(network, t=100, steps=5, rounds=1)(IMAGES)


# ---- frequencies


def test_no_slack_gives_the_reference_phase_and_pi_leaves_phases_alone():
    images, reference = IMAGES[:1], IMAGES[1:2]
    low = (radii(12, 12, IMAGES) <= 0.5)[None, None].expand(1, 3, 12, 12)

    def phase(x):
        return torch.fft.fft2(x)[low].angle()

    kept = keep_low(images, reference, 0.5, 0.5, 0.0)
    wrapped = torch.remainder(phase(kept) - phase(reference) + math.pi, 2 * math.pi) - math.pi
    assert wrapped.abs().max() < 1e-6
    free = keep_low(images, reference, -1.0, 0.5, math.pi)
    torch.testing.assert_close(free, images)


def test_the_phase_difference_is_wrapped_before_it_is_clipped():
    """Phases of 3.1 and -3.1 are 0.08 apart: within a slack of 0.3 the picture's own stays."""
    row = torch.arange(12, dtype=torch.float64) * 2 * math.pi / 12
    images, reference = (torch.cos(row + phase).expand(1, 1, 12, 12) for phase in (3.1, -3.1))
    torch.testing.assert_close(keep_low(images, reference, -1.0, 1.0, 0.3), images)


def test_radius_zero_touches_the_mean_alone():
    kept = keep_low(IMAGES[:1], IMAGES[1:2], 0.0, 0.0, 0.0)
    means = IMAGES.mean((-2, -1), keepdim=True)
    torch.testing.assert_close(kept, IMAGES[:1] - means[:1] + means[1:2])


def test_low_frequencies_of_the_input_survive_freqpure(network):
    """The unguarded channel: with the whole input as reference, a low-frequency change passes in full."""
    purifier = FreqPure(network, t=100, steps=3, amplitude=0.34, phase=0.34, slack=0.0, clamp=False)
    purified = purifier(IMAGES, torch.tensor([1, 2, 3]))
    low = (radii(12, 12, IMAGES) <= 0.34).expand_as(IMAGES)
    torch.testing.assert_close(torch.fft.fft2(purified)[low], torch.fft.fft2(IMAGES)[low])


def natural(side=32):
    """Pictures whose spectrum falls off as photographs' do."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64)
    spectrum = torch.fft.fft2(white) / (radii(side, side, white) * side / 2 + 0.5)
    images = torch.fft.ifft2(spectrum).real
    return (0.5 + images / images.abs().amax((1, 2, 3), keepdim=True) / 2).clamp(0, 1)


def band_powers(noise):
    power = torch.fft.fft2(noise).abs().square().mean((0, 1)).flatten()
    distance = radii(*noise.shape[-2:], like=noise)
    ring = (distance / distance.max() * 8 + 1e-5).long().clamp(max=7).flatten()
    return torch.stack([power[ring == band].mean() for band in range(8)])


def test_weights_are_one_over_the_rings_magnitude():
    pixels = 2 * natural() - 1
    weights = band_weights(pixels, 1.8, 8)
    distance = radii(32, 32, pixels)
    ring = (distance / distance.max() * 8 + 1e-5).long().clamp(max=7)
    assert [int((ring == band).sum()) for band in range(8)] == [21, 76, 124, 180, 220, 242, 120, 41]
    magnitude = torch.fft.fft2(pixels[0, 1]).abs()
    for band in (0, 3, 7):
        expected = 1 / (magnitude[ring == band].mean() ** 1.8 + 1e-6)
        torch.testing.assert_close(weights[0, 1][ring == band], expected.expand(int((ring == band).sum())))


def shaped_noise(model, mode, images, draws):
    purifier = ManiPure(model, t=50, steps=1, mode=mode)
    white = torch.randn(draws, *images.shape[1:], generator=torch.Generator().manual_seed(1)).double()
    return 2 * purifier.shaped((white + 1) / 2, images.expand(draws, -1, -1, -1)) - 1


@pytest.mark.parametrize("mode", ["literal", "spatial", "spectral"])
def test_shaped_noise_has_the_variance_that_the_denoiser_expects(network, mode):
    assert shaped_noise(network, mode, natural()[:1], 2000).var().item() == pytest.approx(1, rel=0.03)


def test_spatial_noise_has_a_flat_spectrum_and_spectral_noise_has_not(network):
    flat = band_powers(shaped_noise(network, "spatial", natural()[:1], 400)) / 1024
    torch.testing.assert_close(flat, torch.ones(8, dtype=torch.float64), rtol=0, atol=0.03)
    tilted = band_powers(shaped_noise(network, "spectral", natural()[:1], 50)) / 1024
    assert tilted[0] < 1e-2 * tilted[7]


# ---- likelihood


def test_likelihood_maximisation_equals_torchs_adam(gaussian):
    """On the Gaussian world, replaying the same noise through torch.optim.Adam."""
    purifier, seeds = LikelihoodMaximisation(gaussian, steps=4, clamp=False), torch.tensor([1, 2])
    images = IMAGES[:2, :, :4, :4]
    z = (2 * images - 1).clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=0.1)
    for number in range(1, 5):
        tape = NoiseTape(seeds)
        uniform = torch.special.ndtr(tape.noise(number, z[:, :1, :1, :1], 1)).flatten()
        level = 0.4 + 0.2 * uniform
        t = (purifier.ratios.double()[None] - level[:, None]).abs().argmin(1)
        alpha, sigma = gaussian.schedule.at(t, z)
        noisy = alpha * z + sigma * tape.noise(number, z)
        clean = to_clean("epsilon", gaussian.predict(noisy, t), noisy, alpha, sigma)
        adam.zero_grad()
        (clean - z).square().sum().backward()
        adam.step()
    torch.testing.assert_close(purifier(images, seeds), (z.detach() + 1) / 2, rtol=1e-6, atol=1e-8)


# ---- sizes and filters


def test_a_tiled_purifier_keeps_pictures_of_any_size(network):
    purifier = Tiled(DiffPure(network, t=5, steps=1), size=12, overlap=6, rounds=2)
    images = torch.rand(1, 3, 31, 17, dtype=torch.float64)
    assert purifier(images).shape == images.shape


def test_tiles_of_a_transform_are_the_transform():
    images = torch.rand(1, 3, 31, 17)
    torch.testing.assert_close(
        Tiled(Quantize(3), size=12, overlap=6, rounds=1, kept=0)(images), Quantize(3)(images)
    )


def test_bilateral_filter_equals_a_naive_loop():
    images = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = bilateral_filter(images, reach=2, colour=0.2, space=1.5)
    padded = nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")[0]
    for y, x in ((0, 0), (3, 4), (5, 6)):
        centre, total, weights = images[0, :, y, x], 0.0, 0.0
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                if math.hypot(dy, dx) > 2:
                    continue
                other = padded[:, y + 2 + dy, x + 2 + dx]
                weight = math.exp(-(dy**2 + dx**2) / (2 * 1.5**2))
                weight *= math.exp(-((other - centre).abs().sum().item() ** 2) / (2 * 0.2**2))
                total, weights = total + weight * other, weights + weight
        torch.testing.assert_close(found[0, :, y, x], total / weights)


# ---- voting


def deciding(logits):
    """A purified classifier whose draws say the given rows [draws, classes] in turn."""
    rows = iter(logits)

    class Says(nn.Module):
        def forward(self, images):
            return torch.tensor(next(rows)).expand(len(images), -1)

    return PurifiedClassifier(Blur(1.0), Says())


def test_votes_are_counted_and_ties_go_to_the_likelier_class():
    images = torch.rand(2, 3, 8, 8)
    won = deciding([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]).predict(images, draws=3)
    assert won.classes.tolist() == [0, 0]
    assert won.counts.tolist() == [[2, 1, 0]] * 2
    tied = [[0.1, 0.0, -9.0], [0.0, 5.0, -9.0]]
    assert deciding(tied).predict(images, draws=2).classes.tolist() == [1, 1]
    outvoted = [[0.1, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 9.0, 0.0]]
    assert deciding(outvoted).predict(images, draws=3).classes.tolist() == [0, 0]
    assert deciding(outvoted).predict(images, draws=3, vote="mean_prob").classes.tolist() == [1, 1]
    assert deciding(outvoted).predict(images, draws=3, vote="mean_logit").classes.tolist() == [1, 1]


def test_decisions_repeat_with_a_seed(network):
    torch.manual_seed(0)
    model = PurifiedClassifier(
        DiffPure(network, t=200, steps=2), nn.Sequential(nn.Flatten(), nn.Linear(432, 5).double())
    )
    first, second = (model.predict(IMAGES, draws=4, seed=3) for _ in range(2))
    assert torch.equal(first.counts, second.counts)
    with pytest.raises(ValueError, match="unknown vote 'median'"):
        model.predict(IMAGES, vote="median")
    with pytest.raises(ValueError, match="at least one draw"):
        model.predict(IMAGES, draws=0)
