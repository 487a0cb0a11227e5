"""Losses checked on a linear model, whose gradients are known in closed form."""

import pytest
import torch
from torch import nn

from diffusion.ideal import IdealDenoiser
from diffusion.losses import denoising_loss, score_gradient, split_gradient
from diffusion.model import Condition, DiffusionModel
from diffusion.schedule import NoiseSchedule

PIXELS, LATENT, SCALE = 12, 6, 0.18215


class LinearLatent(DiffusionModel):
    """`z = s W x` and `predict = A z_t`."""

    def __init__(self, encoder, network):
        super().__init__(
            NoiseSchedule.scaled_linear(),
            prediction="epsilon",
            name="linear",
            multiple=1,
            latent_channels=LATENT,
            comfortable=2,
        )
        self.encoder, self.network = nn.Parameter(encoder), nn.Parameter(network)
        self.freeze()

    @property
    def denoiser(self):
        return self

    def encode(self, images):
        return SCALE * (images.flatten(1) @ self.encoder.T).view(-1, LATENT, 1, 1)

    def decode(self, z, *, clamp=True):
        raise NotImplementedError

    def predict(self, z_t, t, condition=None):
        return (z_t.flatten(1) @ self.network.T).view_as(z_t)

    def condition(self, prompts):
        return Condition()


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def model(draw):
    return LinearLatent(draw(LATENT, PIXELS), draw(LATENT, LATENT))


def pixel_gradient(model, losses_of_z, images):
    images = images.detach().requires_grad_()
    losses_of_z(model.encode(images)).sum().backward()
    return images.grad.flatten(1)


def closed_form(model, images, noise, t):
    """Residual `r = A z_t - noise`, and the two pixel gradients written with matrices."""
    alpha = model.schedule.at(t, noise)[0].view(-1, 1)
    z_t = model.schedule.add_noise(model.encode(images), noise, t)
    residual = z_t.flatten(1) @ model.network.T - noise.flatten(1)
    score = SCALE * residual @ model.encoder
    full = 2 * alpha / LATENT * SCALE * residual @ model.network @ model.encoder
    return residual, full, score


def test_denoising_loss_and_its_pixel_gradient_match_the_closed_form(model, draw):
    images, noise, t = draw(3, 3, 2, 2), draw(3, LATENT, 1, 1), torch.tensor([3, 300, 900])
    residual, full, _ = closed_form(model, images, noise, t)
    losses = denoising_loss(model, model.encode(images), noise, t)
    torch.testing.assert_close(losses, residual.square().mean(1))
    measured = pixel_gradient(model, lambda z: denoising_loss(model, z, noise, t), images)
    torch.testing.assert_close(measured, full)


def test_score_distillation_skips_only_the_jacobian_of_the_denoiser(model, draw):
    images, noise, t = draw(3, 3, 2, 2), draw(3, LATENT, 1, 1), torch.tensor([3, 300, 900])
    residual, _, score = closed_form(model, images, noise, t)
    gradient = score_gradient(model, model.encode(images), noise, t)
    assert not gradient.requires_grad
    torch.testing.assert_close(gradient.flatten(1), residual)
    measured = pixel_gradient(model, lambda z: (gradient * z).flatten(1).sum(1), images)
    torch.testing.assert_close(measured, score)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample", "flow"])
def test_score_gradient_has_one_direction_whatever_the_model_says(prediction):
    schedule = NoiseSchedule.rectified_flow() if prediction == "flow" else NoiseSchedule.linear()
    model = IdealDenoiser(torch.rand(6, 3, 4, 4), schedule, prediction=prediction).double()
    z, noise = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([300, 700])
    measured = score_gradient(model, z, noise, t)
    expected = model.predict_noise(schedule.add_noise(z, noise, t), t) - noise
    cosine = torch.cosine_similarity(measured.flatten(1), expected.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("slope", [0.7, -0.7])
def test_with_a_scalar_denoiser_the_two_gradients_are_parallel(draw, slope):
    model = LinearLatent(draw(LATENT, PIXELS), slope * torch.eye(LATENT, dtype=torch.float64))
    images, noise, t = draw(1, 3, 2, 2), draw(1, LATENT, 1, 1), torch.tensor([500])
    full = pixel_gradient(model, lambda z: denoising_loss(model, z, noise, t), images)
    gradient = score_gradient(model, model.encode(images), noise, t)
    score = pixel_gradient(model, lambda z: (gradient * z).flatten(1).sum(1), images)
    ratio = 2 * model.schedule.level(500)[0] * slope / LATENT  # .12258 for slope .7 at alpha^2 = .276
    torch.testing.assert_close(full, ratio * score)


def test_split_chain_rule_equals_the_full_one(draw):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    ideal = IdealDenoiser(torch.rand(6, 3, 4, 4), NoiseSchedule.linear())
    images, noise, t = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 4, 4), torch.tensor([500, 700])

    def loss(z):
        return denoising_loss(ideal, z, noise, t)

    whole = images.clone().requires_grad_()
    values = loss(encoder(whole))
    values.sum().backward()

    halves = images.clone().requires_grad_()
    with torch.no_grad():
        z = encoder(halves)
        reported, gradient = split_gradient(loss, z)
    (gradient * encoder(halves)).sum().backward()
    torch.testing.assert_close(reported, values)
    torch.testing.assert_close(halves.grad, whole.grad, rtol=1e-5, atol=1e-9)


def test_losses_are_one_per_picture_whatever_stands_beside_it(model, draw):
    images, noise, t = draw(4, 3, 2, 2), draw(4, LATENT, 1, 1), torch.tensor([0, 10, 500, 999])
    z = model.encode(images)
    together = denoising_loss(model, z, noise, t)
    alone = [denoising_loss(model, z[i : i + 1], noise[i : i + 1], t[i : i + 1]) for i in range(4)]
    assert together.shape == (4,)
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_frozen_model_stays_frozen_and_its_copy_trains(model):
    wrapper = nn.Sequential(model)
    wrapper.train()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    twin = model.trainable_copy()
    assert twin.training
    assert all(p.requires_grad for p in twin.parameters())
    twin.network.data.zero_()
    assert model.network.abs().sum() > 0
