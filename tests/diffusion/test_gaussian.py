import pytest
import torch

from diffusion.gaussian import GaussianDenoiser
from diffusion.losses import denoising_loss
from diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear()


def correlated(count):
    """Images whose pixels hang together, around one half."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64) / 12
    return (0.5 + torch.randn(count, 12, generator=generator, dtype=torch.float64) @ mixing).view(-1, 3, 2, 2)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_the_clean_picture_is_the_conditional_mean(prediction):
    """Against the textbook formula for jointly Gaussian vectors, with the full covariance."""
    images = correlated(5000).float()
    model = GaussianDenoiser.fitted(images, SCHEDULE, prediction=prediction).double()
    z = (2 * images - 1).flatten(1).double()
    mean, covariance = z.mean(0), torch.cov(z.T)
    t = torch.tensor([400])
    alpha, sigma = (value.item() for value in SCHEDULE.at(t, z[:1].view(1, 3, 2, 2)))
    z_t = torch.randn(1, 12, dtype=torch.float64)
    total = alpha**2 * covariance + sigma**2 * torch.eye(12, dtype=torch.float64)
    expected = mean + alpha * covariance @ torch.linalg.solve(total, z_t[0] - alpha * mean)
    found = model.predict_clean(z_t.view(1, 3, 2, 2), t)
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-3, atol=1e-4)


def test_no_linear_denoiser_does_better_on_its_data():
    images = correlated(20000)
    z, noise = 2 * images - 1, torch.randn(20000, 3, 2, 2, dtype=torch.float64)
    model, t = GaussianDenoiser.fitted(images, SCHEDULE).double(), torch.full((20000,), 300)
    own = denoising_loss(model, z, noise, t).mean()
    z_t = SCHEDULE.add_noise(z, noise, t).flatten(1)
    design = torch.cat([z_t, torch.ones(20000, 1, dtype=torch.float64)], 1)
    fitted = design @ torch.linalg.lstsq(design, noise.flatten(1)).solution
    best = (fitted - noise.flatten(1)).square().mean()
    assert own == pytest.approx(best.item(), rel=0.01)


def test_one_variance_stands_for_all_entries():
    model = GaussianDenoiser(torch.full((3, 4, 4), 0.2), 0.5, SCHEDULE)
    alpha, sigma = SCHEDULE.level(200)
    z_t, t = torch.randn(2, 3, 4, 4), torch.tensor([200, 200])
    expected = 0.2 + alpha * 0.5 / (alpha**2 * 0.5 + sigma**2) * (z_t - alpha * 0.2)
    torch.testing.assert_close(model.predict_clean(z_t, t), expected)
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(model.decode(model.encode(images)), images)
