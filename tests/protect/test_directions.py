"""Each method does what it claims to a small random network, measured on draws that it never saw."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffusion.latent import LatentDiffusion
from diffusion.losses import denoising_loss
from diffusion.schedule import NoiseSchedule
from protect.methods import create
from protect.targets import texture


class _OneWord(nn.Module):
    """A text encoder that says the same whatever it is told."""

    def __init__(self):
        super().__init__()
        self.word = nn.Parameter(torch.randn(1, 3, 16))

    def forward(self, prompts, rows=None):
        return SimpleNamespace(last_hidden_state=self.word.expand(len(prompts), -1, -1))


@pytest.fixture(scope="module")
def model():
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        scaling_factor=1.0,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    return LatentDiffusion(vae, unet, NoiseSchedule.scaled_linear(), texts=[_OneWord()], name="tiny")


IMAGES = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
SETTINGS = {"eps": 16 / 255, "step_size": 2 / 255, "steps": 25}


@torch.no_grad()
def difficulty(model, images):
    """The denoising loss over a fixed bank of 64 times and noises."""
    generator = torch.Generator().manual_seed(99)
    z = model.encode(images).expand(64, -1, -1, -1)
    t, noise = torch.randint(1000, (64,), generator=generator), torch.randn(z.shape, generator=generator)
    return denoising_loss(model, z, noise, t, model.condition(["anything"])).mean().item()


@torch.no_grad()
def distance_to_texture(model, images):
    return (model.encode(images) - model.encode(texture(32, 32))).square().mean().item()


@pytest.fixture(scope="module")
def protected(model):
    """The picture under each method, found once."""
    names = ["advdm", "advdm-minus", "mist", "mist-textural", "mist-semantic", "sdst-minus", "photoguard"]
    generator = torch.Generator()
    return {
        n: create(n, **SETTINGS).protect(IMAGES, model, generator=generator.manual_seed(1)) for n in names
    }


def test_advdm_makes_the_picture_harder_to_denoise(model, protected):
    assert difficulty(model, protected["advdm"]) > difficulty(model, IMAGES)


def test_advdm_minus_makes_the_picture_easier_to_denoise(model, protected):
    assert difficulty(model, protected["advdm-minus"]) < difficulty(model, IMAGES)


@pytest.mark.parametrize("name", ["mist-textural", "mist", "sdst-minus"])
def test_targeted_methods_come_closer_to_the_texture(model, protected, name):
    assert distance_to_texture(model, protected[name]) < 0.9 * distance_to_texture(model, IMAGES)


def test_mist_is_nearer_the_texture_than_its_semantic_half(model, protected):
    fused, semantic = (distance_to_texture(model, protected[n]) for n in ("mist", "mist-semantic"))
    assert fused < semantic


def test_mist_semantic_makes_the_picture_harder_to_denoise(model, protected):
    assert difficulty(model, protected["mist-semantic"]) > difficulty(model, IMAGES)


def test_photoguard_shrinks_the_latent(model, protected):
    before, after = (model.encode(images).norm().item() for images in (IMAGES, protected["photoguard"]))
    assert after < before


@pytest.mark.parametrize("name", ["advdm", "mist", "sds-minus", "sdst-minus", "photoguard"])
def test_nearly_every_pixel_has_a_gradient_in_bfloat16(model, name):
    """A zero gradient has the sign zero and would freeze its pixel; bfloat16 keeps float32's range."""
    from attacks import autocast
    from attacks.objectives import value_and_gradient

    objective = create(name).objective(
        model, IMAGES, target=texture(32, 32), mask=None, generator=torch.Generator().manual_seed(0)
    )
    _, gradient = value_and_gradient(autocast(objective, torch.bfloat16), IMAGES)
    assert (gradient == 0).float().mean().item() < 0.001


@pytest.mark.parametrize("name", ["advdm", "mist"])
def test_split_chain_rule_equals_one_graph_on_networks(model, name):
    from attacks.objectives import value_and_gradient
    from protect.methods.draws import draw_noise

    method = create(name)
    objective = method.objective(
        model, IMAGES, target=texture(32, 32), mask=None, generator=torch.Generator().manual_seed(0)
    )
    _, split = value_and_gradient(objective, IMAGES)
    z_target = model.encode(texture(32, 32))
    condition = model.condition([method.prompt])

    def whole(images):
        z = model.encode(images)
        t, noise = draw_noise(model, z, torch.Generator().manual_seed(0))
        loss = denoising_loss(model, z, noise, t, condition)
        if name == "advdm":
            return loss
        return method.semantic_weight * loss - (z - z_target).square().flatten(1).mean(1)

    _, full = value_and_gradient(whole, IMAGES)
    assert ((split - full).norm() / full.norm()).item() < 1e-4


def test_weights_never_get_a_gradient(model):
    create("mist", steps=1).protect(IMAGES, model)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
