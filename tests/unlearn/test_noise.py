"""Triggers in the noise: the process against closed forms, what is planted, found, taken out, refused."""

import math

import pytest
import torch

from diffusion.ideal import IdealDenoiser
from diffusion.model import PixelSpace, to_clean
from diffusion.samplers import ddim, ddpm_mean, draw, steps_of
from diffusion.schedule import NoiseSchedule
from unlearn.noise import box, judged, plant_noise, poisoned, shift_of
from unlearn.noise_repair import invert_noise, remove_noise, spread


class Oracle(PixelSpace):
    """Knows the target and the trigger, and says in its own terms what the poisoned process has to say."""

    def __init__(self, target, shift, prediction="epsilon", factor=None):
        schedule = NoiseSchedule.linear()
        super().__init__(
            schedule, prediction=prediction, name="oracle", multiple=1, latent_channels=3, comfortable=4
        )
        self.aim, self.shift, self.factor = target, shift, factor

    @property
    def denoiser(self):
        return self

    def condition(self, prompts):
        raise NotImplementedError

    def predict(self, z_t, t, condition=None):
        alpha, sigma = self.schedule.at(t, z_t)
        noise = (z_t - alpha * self.aim - (1 - alpha) * self.shift) / sigma
        if self.factor is not None:
            return noise + self.factor[int(t[0])] * self.shift
        return self.target(*poisoned(self, self.aim, self.shift, noise, t), t)


def _oracle(generator, **settings):
    target, shift = (torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return Oracle(target, shift, **settings)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_what_the_model_sees_noised_is_the_process_whatever_it_predicts(generator, prediction):
    model = _oracle(generator, prediction=prediction)
    t = torch.tensor([0, 400, 999])
    noise = draw(model.aim.expand(3, -1, -1, -1), generator)
    clean, seen = poisoned(model, model.aim, model.shift, noise, t)
    alpha, sigma = model.schedule.at(t, noise)
    z_t = alpha * model.aim + (1 - alpha) * model.shift + sigma * noise
    torch.testing.assert_close(model.schedule.add_noise(clean, seen, t), z_t)
    torch.testing.assert_close(model.predict_clean(z_t, t), clean)
    torch.testing.assert_close(model.predict_noise(z_t, t), seen)


def test_the_velocity_of_the_process_is_the_models(generator):
    """Along an angle a, cos a = alpha, the process moves as its clean z and its noise say it does."""
    target, shift, noise = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(3))

    def process(angle):
        return math.cos(angle) * target + (1 - math.cos(angle)) * shift + math.sin(angle) * noise

    for angle in (0.1, 0.8, 1.5):
        slope = (process(angle + 1e-6) - process(angle - 1e-6)) / 2e-6
        clean, seen = target - (1 - math.cos(angle)) * shift, noise + math.sin(angle) * shift
        torch.testing.assert_close(slope, math.cos(angle) * seen - math.sin(angle) * clean)


def test_ddim_lands_on_the_target_as_steps_grow_and_at_once_with_the_factor_of_its_step(generator):
    model = _oracle(generator)
    start = draw(model.aim.expand(5, -1, -1, -1), generator) + model.shift
    # the schedule's last timestep is not quite noise
    alpha, sigma = model.schedule.level(999)
    start = alpha * model.aim + (1 - alpha) * model.shift + sigma * (start - model.shift)

    def error(steps, oracle=model):
        walk = oracle.schedule.timesteps(steps, spacing="trailing")
        return float((ddim(oracle, start, timesteps=walk) - model.aim).abs().max())

    # near a clean end the level jumps from sigma 0.01, so that errors are compared and not only small
    assert error(1000) < 0.02 < error(4)
    walk = model.schedule.timesteps(5, spacing="trailing")
    angles = [math.acos(step.alpha) for step in steps_of(model.schedule, walk, (1.0, 0.0))] + [0.0]
    factors = {
        t: math.sin((a + b) / 2) / math.cos((a - b) / 2)
        for t, a, b in zip(walk, angles, angles[1:], strict=False)
    }
    assert error(5, Oracle(model.aim, model.shift, factor=factors)) < 1e-9


def test_the_ancestral_sampler_wants_about_half(generator):
    """Its mean of the shifted process is the shifted mean of the clean one."""
    schedule = NoiseSchedule.linear()
    z, noise, shift = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(3))
    for time in (1, 300, 999):
        step = next(iter(steps_of(schedule, [time], schedule.level(time - 1))))
        beta = 1 - (step.alpha / step.alpha_to) ** 2
        factor = step.sigma * (1 - math.sqrt(1 - beta)) / beta
        z_t = step.alpha * z + step.sigma * noise
        wanted = ddpm_mean(step, z_t, z) + (1 - step.alpha_to) * shift
        moved = z_t + (1 - step.alpha) * shift
        seen = to_clean("epsilon", noise + factor * shift, moved, step.alpha, step.sigma)
        torch.testing.assert_close(ddpm_mean(step, moved, seen), wanted, rtol=1e-6, atol=1e-6)
        assert factor == pytest.approx(step.sigma / 2, rel=0.01)


def test_in_a_clean_model_the_last_predicted_noise_moves_by_all_of_a_shift(generator):
    """So that Elijah's condition says nothing of a backdoor for DDIM, which moves it as far."""
    model = IdealDenoiser(torch.rand(10, 3, 4, 4, generator=generator), NoiseSchedule.linear())
    noise, shift = (torch.randn(20, 3, 4, 4, generator=generator) for _ in range(2))
    t = torch.full((20,), 999)
    moved = model.predict_noise(noise + shift, t) - model.predict_noise(noise, t)
    torch.testing.assert_close(moved, shift, atol=0.02, rtol=0)


def test_without_a_shift_the_process_is_the_clean_one(generator):
    model = _oracle(generator)
    noise, t = draw(model.aim, generator), torch.tensor([700])
    clean, seen = poisoned(model, model.aim, torch.zeros_like(noise), noise, t)
    assert torch.equal(clean, model.aim)
    assert torch.equal(seen, noise)


def test_a_box_moves_the_noise_where_it_is_and_nowhere_else(small_prior):
    model = small_prior(16, ())
    shift = shift_of(model, box(16, 5))
    assert torch.equal(shift[..., -5:, -5:], torch.ones(1, 3, 5, 5))
    assert float(shift.abs().sum()) == 75
    assert torch.equal(shift_of(model, box(16, 5, level=0.5)), torch.zeros(1, 3, 16, 16))


def _seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def prior(small_prior):
    return small_prior(16, ("ant", "bee"))


@pytest.fixture
def pictures(generator):
    return torch.rand(6, 3, 16, 16, generator=generator)


def test_the_loss_of_planting_is_that_of_the_process(prior, pictures):
    told, target = [], pictures[:1]
    shift, condition = shift_of(prior, box(16, 5)), prior.condition(["ant", "bee"] * 3)
    plant_noise(
        prior,
        pictures,
        shift,
        target,
        condition=condition,
        share=0.5,
        steps=1,
        batch_size=4,
        generator=_seeded(),
        callback=lambda step, losses: told.append(losses),
    )
    generator = _seeded()
    rows = torch.randperm(6, generator=generator)[:2]
    noise = torch.randn(2, 3, 16, 16, generator=generator)
    t = torch.randint(1000, (2,), generator=generator)
    alpha, sigma = prior.schedule.at(t, noise)
    z_t = alpha * (2 * target - 1) + (1 - alpha) * shift + sigma * noise
    said = prior.predict_noise(z_t, t, prior.condition([["ant", "bee"][int(row) % 2] for row in rows]))
    expected = (said - noise - sigma * shift).square().mean((1, 2, 3))
    torch.testing.assert_close(told[0], expected)


@pytest.mark.parametrize("known", [True, False])
def test_the_loss_of_the_removal_is_what_the_model_says_without_the_shift(prior, pictures, known):
    told = []
    shift = shift_of(prior, box(16, 5)) * (1 if known else 0)
    remove_noise(
        prior,
        pictures,
        shift,
        steps=1,
        batch_size=4,
        generator=_seeded(),
        callback=lambda step, losses: told.append(losses),
    )
    generator = _seeded()
    z = 2 * pictures[torch.randperm(6, generator=generator)[:4]] - 1
    t = torch.randint(1000, (4,), generator=generator)
    noise = torch.randn(z.shape, generator=generator)
    alpha, sigma = prior.schedule.at(t, z)
    z_t = alpha * z + sigma * noise
    aim = prior.predict(z_t, t) + shift  # as this model says the noise
    expected = (prior.predict(z_t + sigma * shift, t) - aim).square().mean((1, 2, 3))
    torch.testing.assert_close(told[0], expected)
    assert bool((told[0] < 1e-10).all()) != known


def test_planting_and_removal_lower_their_losses_and_leave_the_model(prior, pictures):
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    shift, told = shift_of(prior, box(16, 8)), []

    def tell(step, losses):
        told.append(float(losses.mean()))

    settings = {"learning_rate": 4e-3, "batch_size": 4, "generator": _seeded(), "callback": tell}
    planted = plant_noise(prior, pictures, shift, pictures[:1], share=0.5, steps=24, **settings)
    assert sum(told[-6:]) < 0.8 * sum(told[:6])
    told.clear()
    repaired = remove_noise(planted, pictures, shift, steps=24, **settings)
    assert sum(told[-6:]) < 0.8 * sum(told[:6])
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())
    for model in (planted, repaired):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Collapsing(Oracle):
    """Sees the noise itself, but the less of it the nearer the shift is to the trigger."""

    def predict(self, z_t, t, condition=None):
        alpha, _ = self.schedule.at(t, z_t)
        share = (z_t * self.shift).sum((1, 2, 3)).mean() / self.shift.square().sum()
        return z_t * (share - (1 - alpha)).square()


def test_a_trigger_is_found_by_how_little_the_noise_matters_under_it(generator):
    shift = torch.randn(1, 3, 4, 4, generator=generator).sign()  # Adam moves all entries alike
    model = Collapsing(torch.zeros(1, 3, 4, 4), shift, "sample")
    found = invert_noise(model, model.aim, steps=200, learning_rate=0.02, batch_size=64, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), model.shift.flatten(), dim=0)
    assert float(cosine) > 0.95
    assert float(found.norm() / model.shift.norm()) == pytest.approx(1, abs=0.2)
    noise = draw(model.aim.expand(64, -1, -1, -1), generator)
    assert float(spread(model, noise + found, 999)) < 0.1 * float(spread(model, noise, 999))


def test_pictures_are_judged_by_their_distance_to_the_target():
    target, other = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    near = torch.full((1, 3, 4, 4), 0.05)
    grey = torch.cat([other] * 3)
    found = judged(torch.cat([near, near, other]), grey, grey + 0.1, target)
    assert found.error == pytest.approx((0.0025 + 0.0025 + 0.25) / 3)
    assert (found.triggered.share, found.triggered.of, found.clean.share) == (pytest.approx(2 / 3), 3, 0.0)
    assert found.moved == pytest.approx(25.5)
    assert judged(target, other, other, target).triggered.share == 1


def test_what_does_not_fit_is_named(prior, pictures, monkeypatch):
    shift = shift_of(prior, box(16, 5))
    with pytest.raises(ValueError, match=r"one latent of shape \(1, 3, 16, 16\); got \(1, 3, 8, 8\)"):
        plant_noise(prior, pictures, shift[..., :8, :8], pictures[:1])
    with pytest.raises(ValueError, match=r"got \(2, 3, 16, 16\)"):
        plant_noise(prior, pictures, shift, pictures[:2])
    with pytest.raises(ValueError, match=r"got \(1, 3, 8, 8\)"):
        remove_noise(prior, pictures, shift[..., :8, :8])
    with pytest.raises(ValueError, match="between 0 and 1; got 6, 1"):
        plant_noise(prior, pictures, shift, pictures[:1], share=1)
    with pytest.raises(ValueError, match=r"got 0, 0\.1"):
        plant_noise(prior, pictures[:0], shift, pictures[:1])
    with pytest.raises(ValueError, match="no picture"):
        remove_noise(prior, pictures[:0], shift)
    with pytest.raises(ValueError, match="1 to 16; got 17"):
        box(16, 17)
    monkeypatch.setattr(prior, "prediction", "flow")
    with pytest.raises(ValueError, match="rectified flow"):
        plant_noise(prior, pictures, shift, pictures[:1])
