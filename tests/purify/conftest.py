"""Worlds in which purification has a closed form, and a small random network for gradients."""

import pytest
import torch
from diffusers import UNet2DModel

from diffusion.gaussian import GaussianDenoiser
from diffusion.pixel import PixelDiffusion
from diffusion.schedule import NoiseSchedule


class ContinuousGaussian(GaussianDenoiser):
    """Gaussian data whose noise levels are those of the VP-SDE at time `t / 1000`, as its solvers expect."""

    def predict(self, z_t, t, condition=None):
        time = t.to(z_t.dtype).view(-1, 1, 1, 1) / 1000
        signal = torch.exp(-0.5 * 19.9 * time**2 - 0.1 * time)
        return (1 - signal).sqrt() * z_t / (signal * self.variances[0].to(z_t.dtype) + 1 - signal)


@pytest.fixture
def gaussian():
    """Data N(0, 0.25 I) under DDPM's schedule, in float64."""
    return GaussianDenoiser(torch.zeros(3, 4, 4, dtype=torch.float64), 0.25, NoiseSchedule.linear())


@pytest.fixture
def continuous_gaussian():
    return ContinuousGaussian(torch.zeros(3, 4, 4, dtype=torch.float64), 0.25, NoiseSchedule.linear())


@pytest.fixture(scope="session")
def network():
    """A random U-Net in float64, as a diffusion model of images of up to 12 pixels."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=12,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    ).double()
    return PixelDiffusion(unet, NoiseSchedule.linear(), name="random")
