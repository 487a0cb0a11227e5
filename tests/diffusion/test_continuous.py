"""Networks over noise levels and over time, written in closed form, against the exact denoiser of Gaussian
data."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from diffusion.continuous import EDM, Preconditioned, ScoreSDE
from diffusion.gaussian import GaussianDenoiser
from diffusion.losses import denoising_loss
from diffusion.schedule import NoiseSchedule
from purify import DiffPure, Resized

VARIANCE = 0.25
LINEAR = NoiseSchedule.linear(clip=1.0)


class GaussianLevels(nn.Module):
    """EDM's denoiser of data N(0, VARIANCE): shrinks `x = clean + sigma noise`."""

    def __init__(self):
        super().__init__()
        self.register_buffer("variance", torch.tensor(VARIANCE, dtype=torch.float64))

    def forward(self, x, sigma, class_labels):
        assert sigma.shape == (len(x),)
        assert class_labels is None
        return x * (self.variance / (self.variance + sigma**2)).view(-1, 1, 1, 1)


class GaussianTimes(nn.Module):
    """A score-SDE network of data N(0, VARIANCE): its score, `-x / var(x)`, times `-sigma`."""

    def __init__(self):
        super().__init__()
        self.register_buffer("variance", torch.tensor(VARIANCE, dtype=torch.float64))

    def forward(self, x, label):
        assert label.shape == (len(x),)
        signal, sigma = vp_sde(label / 999)
        total = signal * self.variance + sigma**2
        return x * (sigma / total).view(-1, 1, 1, 1)


def vp_sde(time):
    """Signal and noise of the VP-SDE: minus the integral of 0.1 + 19.9 s over s from 0 to `time`, in exp."""
    time = torch.as_tensor(time, dtype=torch.float64)
    signal = torch.exp(-(0.1 * time + 19.9 / 2 * time**2))
    return signal, torch.sqrt(1 - signal)


class Rough(nn.Module):
    """A network that is no linear map, for gradients; `more` are sigma and classes, or a label."""

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1).double()
        self.seen = None

    def forward(self, x, level, classes=None):
        self.seen = (x, level, classes)
        told = (
            0 if classes is None else (classes @ torch.arange(classes.shape[1]).to(classes)).view(-1, 1, 1, 1)
        )
        return torch.tanh(self.convolution(x) + told + 0.1 * level.view(-1, 1, 1, 1).sin())


def edm(**more):
    return EDM(GaussianLevels(), LINEAR, name="edm", side=4, **more)


def score(**more):
    return ScoreSDE(GaussianTimes(), name="score", side=4, **more)


BOTH = pytest.mark.parametrize("build", [edm, score], ids=["edm", "score"])


def gaussian(schedule):
    return GaussianDenoiser(torch.zeros(3, 4, 4, dtype=torch.float64), VARIANCE, schedule)


@BOTH
def test_closed_form_networks_are_the_exact_denoiser_at_every_level(build):
    model = build()
    exact = gaussian(model.schedule)
    t = torch.arange(1000)
    z_t = 2 * torch.randn(1000, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(model.predict_clean(z_t, t), exact.predict_clean(z_t, t), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.predict_noise(z_t, t), exact.predict_noise(z_t, t), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "signal"),
    [
        (50, 0.970567),
        (75, 0.938503),
        (100, 0.896282),
        (125, 0.845380),
        (150, 0.787513),
        (200, 0.658362),
        (500, 0.079064),
    ],
)
def test_steps_of_a_score_network_are_thousandths_of_its_time(count, signal):
    schedule = score().schedule
    alpha, sigma = schedule.level(count - 1)
    assert alpha**2 == pytest.approx(signal, abs=1e-6)
    assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-12)
    assert alpha**2 == pytest.approx(float(vp_sde(count / 1000)[0]), abs=1e-12)
    # the discrete twin is near, and another schedule
    assert 1e-4 < abs(NoiseSchedule.linear().level(count - 1)[0] ** 2 - signal) < 1e-3


def test_a_score_network_is_told_999_times_the_time():
    network = Rough()
    model = ScoreSDE(network, name="score", side=4)
    model.predict(torch.zeros(3, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 99, 999]))
    torch.testing.assert_close(network.seen[1], torch.tensor([0.999, 99.9, 999.0], dtype=torch.float64))
    assert network.seen[2] is None


def test_an_edm_network_sees_the_picture_plus_noise_of_its_level():
    network = Rough()
    model = EDM(network, LINEAR, name="edm", side=4)
    clean, noise = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([3, 700])
    model.predict(LINEAR.add_noise(clean, noise, t), t)
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t]
    sigma = ((1 - signal) / signal).sqrt()
    torch.testing.assert_close(network.seen[1], sigma)
    torch.testing.assert_close(network.seen[0], clean + sigma.view(-1, 1, 1, 1) * noise)


@BOTH
@pytest.mark.parametrize(("t", "steps"), [(100, 100), (100, 10), (200, 5)])
def test_one_ddpm_pass_has_the_gain_of_the_wiener_filter(build, t, steps):
    model = build()
    signal = model.schedule.level(t - 1)[0] ** 2
    expected = signal * VARIANCE / (signal * VARIANCE + 1 - signal)
    assert gain(DiffPure(model, t=t, steps=steps, clamp=False)) == pytest.approx(expected, abs=1e-9)


def gain(purifier):
    """By how much the purified picture moves with the picture, its noise held fixed."""
    images, seed = torch.full((1, 3, 4, 4), 0.4, dtype=torch.float64), torch.tensor([3])
    moved = purifier(images + 0.2, seed) - purifier(images, seed)
    torch.testing.assert_close(moved, moved.mean().expand_as(moved))
    return moved.mean().item() / 0.2


@pytest.mark.parametrize(("sampler", "share"), [("sde", 1.0), ("ode", 0.5)])
@pytest.mark.parametrize(("t", "steps"), [(100, 100), (100, 20), (75, 10)])
def test_the_reverse_equation_calls_a_score_network_at_its_own_times(sampler, share, t, steps):
    """Against Euler's method with the score written out, at the times that the walk rounds to."""
    times = [round(t * (steps - number) / steps) / 1000 for number in range(steps)] + [1e-5]
    expected = float(vp_sde(t / 1000)[0].sqrt())
    for time, after in pairwise(times):
        signal = float(vp_sde(time)[0])
        beta = 0.1 + 19.9 * time
        slope = beta * (0.5 - share / (signal * VARIANCE + 1 - signal))
        expected *= 1 + (time - after) * slope
    assert gain(DiffPure(score(), t=t, steps=steps, sampler=sampler, clamp=False)) == pytest.approx(
        expected, abs=1e-9
    )


def test_the_denoising_loss_speaks_the_networks_terms():
    """The loss of an exact denoiser of the clean picture is the variance that is left."""
    z = 0.5 * torch.randn(40000, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise, t = torch.randn_like(z), torch.full((40000,), 200)
    alpha, sigma = LINEAR.level(200)
    left = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
    assert denoising_loss(edm(), z, noise, t).mean().item() == pytest.approx(left, rel=0.01)


def rough_edm():
    return EDM(Preconditioned(Rough()), LINEAR, name="edm", side=4, classes=0)


def rough_score():
    return ScoreSDE(Rough(), name="score", side=4)


@pytest.mark.parametrize("build", [rough_edm, rough_score], ids=["edm", "score"])
def test_gradients_flow_to_the_noisy_picture_and_to_no_weight(build):
    model, t = build(), torch.tensor([40, 700])
    z_t = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: model.predict_noise(z, t), z_t)
    assert torch.autograd.gradcheck(lambda z: model.predict_clean(z, t), z_t)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not model.train().training
    one = model.predict_noise(z_t[1:], t[1:])
    torch.testing.assert_close(one[0], model.predict_noise(z_t, t)[1])


@pytest.mark.parametrize("build", [rough_edm, rough_score], ids=["edm", "score"])
def test_gradients_flow_through_a_purifier(build):
    purifier = DiffPure(build(), t=60, steps=3, clamp=False)
    images = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: purifier(x, torch.tensor([7])), images)


def test_preconditioning_is_that_of_the_paper():
    """Table 1 of Karras et al., number by number."""
    network = Rough()
    denoiser = Preconditioned(network, sigma_data=0.7)
    x, sigma = torch.randn(3, 3, 4, 4, dtype=torch.float64), torch.tensor([0.002, 0.7, 80.0]).double()
    found = denoiser(x, sigma)
    told, levels, _ = network.seen
    for number, level in enumerate(sigma.tolist()):
        c_skip = 0.7**2 / (level**2 + 0.7**2)
        c_out = level * 0.7 / math.sqrt(level**2 + 0.7**2)
        c_in = 1 / math.sqrt(level**2 + 0.7**2)
        assert levels[number].item() == pytest.approx(math.log(level) / 4, rel=1e-12)
        torch.testing.assert_close(told[number], c_in * x[number])
        answer = torch.tanh(network.convolution(c_in * x) + 0.1 * levels.view(-1, 1, 1, 1).sin())[number]
        torch.testing.assert_close(found[number], c_skip * x[number] + c_out * answer)


def test_a_preconditioned_gaussian_network_answers_nothing():
    """With sigma_data the deviation of Gaussian data, c_skip x is the whole answer: F is zero."""

    class Nothing(nn.Module):
        def forward(self, x, level, class_labels):
            return torch.zeros_like(x)

    model = EDM(Preconditioned(Nothing(), sigma_data=VARIANCE**0.5), LINEAR, name="edm", side=4)
    z_t, t = torch.randn(1000, 3, 4, 4, dtype=torch.float64), torch.arange(1000)
    torch.testing.assert_close(model.predict_noise(z_t, t), gaussian(LINEAR).predict_noise(z_t, t))


def test_classes_reach_an_edm_network_as_one_hot_rows():
    network = Rough()
    model = EDM(network, LINEAR, name="edm", side=4, classes=10)
    z_t, t = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.tensor([40, 700])
    model.predict(z_t, t, model.condition(["3", "9"]))
    expected = torch.zeros(2, 10, dtype=torch.float64)
    expected[0, 3] = expected[1, 9] = 1
    assert torch.equal(network.seen[2], expected)
    one, same = (
        model.predict(z_t, t, model.condition(["3"])),
        model.predict(z_t, t, model.condition(["3", "3"])),
    )
    assert torch.equal(one, same)
    with pytest.raises(ValueError, match="edm expects a class from 0 to 9; got 'cat'"):
        model.condition(["cat"])
    with pytest.raises(ValueError, match=r"edm needs a class: pass model.condition\(\['3'\]\)"):
        model.predict(z_t, t)
    assert rough_edm().condition(["anything"]).labels is None


@BOTH
def test_pixels_go_in_and_out_between_0_and_1(build):
    model, images = build(multiple=2), torch.rand(2, 3, 4, 6)
    assert model.encode(images).aminmax() == (2 * images - 1).aminmax()
    torch.testing.assert_close(model.decode(model.encode(images)), images)
    assert model.decode(torch.full((1, 3, 4, 4), -3.0), clamp=False).min() == -1
    assert model.decode(torch.full((1, 3, 4, 4), -3.0)).min() == 0
    with pytest.raises(ValueError, match="takes images whose sides are multiples of 2; got 4x5: pad them"):
        model.encode(images[..., 1:])


@BOTH
def test_the_callers_precision_comes_back(build):
    model, t = build(), torch.tensor([30, 600])
    z_t = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = model.predict(z_t, t)
    for dtype, within in [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)]:
        found = model.predict(z_t.to(dtype), t)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=within, atol=within)


@BOTH
def test_pictures_that_the_network_was_not_made_for_are_refused_in_one_line(build):
    purifier = DiffPure(build(), t=2)
    for images, expected in [
        (torch.rand(1, 1, 4, 4), "knows images of 3 channels; got 1"),
        (torch.rand(1, 3, 8, 8), r"was made for images of 4x4; got 8x8: wrap the purifier in Resized"),
        (torch.rand(1, 3, 4, 4) * 255, "takes images in .0, 1.; got .*: divide bytes by 255"),
    ]:
        with pytest.raises(ValueError, match=expected) as refused:
            purifier(images)
        assert "\n" not in str(refused.value)
    assert Resized(purifier, 4)(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    assert purifier(torch.rand(1, 3, 3, 3)).shape == (1, 3, 3, 3)


def test_what_cannot_work_is_refused_in_one_line():
    class Doubled(nn.Module):
        def forward(self, x, *more):
            return torch.cat([x, x], 1)

    z_t, t = torch.randn(1, 3, 4, 4), torch.tensor([5])
    for model in (EDM(Doubled(), LINEAR, name="two", side=4), ScoreSDE(Doubled(), name="two", side=4)):
        with pytest.raises(
            ValueError, match=r"network of two was given .*\(1, 3, 4, 4\).* got \(1, 6, 4, 4\)"
        ):
            model.predict(z_t, t)
    with pytest.raises(
        ValueError, match=r"alpha and sigma must be positive .* got a schedule down to alpha 0 "
    ):
        EDM(GaussianLevels(), NoiseSchedule.rectified_flow(), name="edm", side=4)
    with pytest.raises(ValueError, match="the side is a number of pixels, at least 1; got 0"):
        EDM(GaussianLevels(), LINEAR, name="edm", side=0, multiple=1)
    with pytest.raises(ValueError, match="the multiple is a number of pixels, at least 1; got 0"):
        score(multiple=0)
    with pytest.raises(ValueError, match="sigma_data is a standard deviation, above 0; got 0"):
        Preconditioned(GaussianLevels(), sigma_data=0)
    cosine = DiffPure(EDM(GaussianLevels(), NoiseSchedule.cosine(), name="edm", side=4), sampler="sde")
    with pytest.raises(ValueError, match="edm has another: use ddpm or ddim"):
        cosine.moves()
