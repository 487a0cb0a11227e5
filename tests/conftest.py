"""What every test shares: one thread, fixed defaults for hypothesis, and the small exact worlds."""

import os
from pathlib import Path

# Before torch or a hub client is imported: the suite runs without a network and never waits for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

# On a busy two-core machine two threads are many times slower than one for networks this small.
torch.set_num_threads(1)
settings.register_profile("vernis", deadline=None, max_examples=25)
settings.load_profile("vernis")


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded randomness of a test's own."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of published weights and pictures that `VERNIS_DATA` names; skips a test without it."""
    folder = Path(os.environ.get("VERNIS_DATA") or "absent")
    if not folder.is_dir():
        pytest.skip("VERNIS_DATA names no folder with published weights and pictures")
    return folder


@pytest.fixture(scope="session")
def small_prior():
    """Build a small random U-Net over pixels that is told one of `labels`, or none of them."""
    from diffusers import UNet2DModel

    from diffusion.pixel import PixelDiffusion
    from diffusion.schedule import NoiseSchedule

    def build(side, labels):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=side,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            num_class_embeds=len(labels) + 1,
        )
        return PixelDiffusion(unet, NoiseSchedule.linear(), name="random", labels=labels)

    return build
