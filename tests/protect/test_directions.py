"""Each method does what it claims to a small random network, measured on draws that it never saw."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffusion.features import features
from diffusion.finetune import low_rank, train
from diffusion.latent import LatentDiffusion
from diffusion.load import load
from diffusion.losses import denoising_loss
from diffusion.schedule import NoiseSchedule
from imaging.io import read
from protect.collective import training_view
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
    names += ["ace", "ace-plus", "hspace", "hspace-kv"]
    generator = torch.Generator()
    return {
        n: create(n, **SETTINGS).protect(IMAGES, model, generator=generator.manual_seed(1)) for n in names
    }


def test_advdm_makes_the_picture_harder_to_denoise(model, protected):
    assert difficulty(model, protected["advdm"]) > difficulty(model, IMAGES)


def test_advdm_minus_makes_the_picture_easier_to_denoise(model, protected):
    assert difficulty(model, protected["advdm-minus"]) < difficulty(model, IMAGES)


@torch.no_grad()
def distance_of_noise_to_texture(model, images):
    """What ACE lowers, over a fixed bank of 64 times and noises."""
    generator = torch.Generator().manual_seed(99)
    z, z_target = model.encode(images).expand(64, -1, -1, -1), model.encode(texture(32, 32))
    t, noise = torch.randint(1000, (64,), generator=generator), torch.randn(z.shape, generator=generator)
    said = model.predict_noise(model.schedule.add_noise(z, noise, t), t, model.condition(["anything"]))
    return (said - z_target).square().mean().item()


def test_ace_brings_the_predicted_noise_to_the_texture(model, protected):
    before, after = (distance_of_noise_to_texture(model, images) for images in (IMAGES, protected["ace"]))
    assert after < before


def test_ace_plus_brings_the_latent_to_the_texture_and_nearer_than_ace(model, protected):
    plus, ace = (distance_to_texture(model, protected[name]) for name in ("ace-plus", "ace"))
    assert plus < 0.9 * distance_to_texture(model, IMAGES)
    assert plus < ace


@torch.no_grad()
def distance_in_the_middle(model, images):
    """How far the middle block's output is from the original's, over a fixed bank of 64 times and noises."""
    generator, (middle,) = torch.Generator().manual_seed(99), [model.denoiser.mid_block]
    t = torch.randint(1000, (64,), generator=generator)
    said = []
    for shown in (images, IMAGES):
        z = model.encode(shown).expand(64, -1, -1, -1)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(98))
        z_t = model.schedule.add_noise(z, noise, t)
        said.append(features(model, z_t, t, model.condition(["anything"]), layers=[middle])[0])
    return (said[0] - said[1]).square().mean().item()


def test_hspace_moves_the_middle_further_than_noise_of_the_same_size_does(model, protected):
    signs = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(4)).sign()
    noisy = (IMAGES + SETTINGS["eps"] * signs).clamp(0, 1)
    assert distance_in_the_middle(model, protected["hspace"]) > 2 * distance_in_the_middle(model, noisy)


def test_hspace_never_runs_the_half_of_the_network_after_the_middle(model):
    from attacks.objectives import value_and_gradient

    ran = []
    after = [*model.denoiser.up_blocks, model.denoiser.conv_out]
    handles = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in after]
    objective = create("hspace").objective(model, IMAGES, target=IMAGES, mask=None, generator=None)
    value_and_gradient(objective, IMAGES + 0.01)
    for handle in handles:
        handle.remove()
    assert ran == []


def test_hspace_kv_makes_the_picture_harder_to_denoise(model, protected):
    assert difficulty(model, protected["hspace-kv"]) > difficulty(model, IMAGES)


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


@pytest.fixture(scope="module")
def subject():
    """The built-in model and two small pictures of one person."""
    face = read(Path(__file__).parents[2] / "examples" / "astronaut.png").pixels[..., 20:220, 140:340]
    return load("builtin"), [training_view(face, 64), training_view(face[..., :150, 20:170], 64)]


def loss_of_a_thief(model, images):
    """The loss of adapters on the very pictures that they were trained on, over a fixed bank."""
    with torch.no_grad():
        z = torch.cat([model.encode(image) for image in images])
    thief, generator = low_rank(model, generator=torch.Generator().manual_seed(7)), torch.Generator()
    told = model.condition(["a portrait of xyz"])
    train(thief, z, told, steps=10, learning_rate=5e-3, batch_size=2, generator=generator.manual_seed(8))
    t = torch.arange(30, 1000, 60).repeat_interleave(len(z))
    z = z.repeat(len(t) // len(z), 1, 1, 1)
    with torch.no_grad():
        return denoising_loss(thief, z, torch.randn(z.shape, generator=generator), t, told).mean().item()


@pytest.mark.parametrize(("name", "settings"), [("fsmg", {"train_steps": 6}), ("aspl", {"rounds": 2})])
def test_a_thief_fits_the_pictures_worse_than_those_with_noise_of_the_same_size(subject, name, settings):
    model, images = subject
    method = create(name, prior_images=1, steps=8, step_size=2 / 255, **settings)
    protected = method.protect_set(images, model, generator=torch.Generator().manual_seed(1))
    sign = torch.randn(images[0].shape, generator=torch.Generator().manual_seed(4)).sign()
    noisy = [(image + method.eps * sign).clamp(0, 1) for image in images]
    ours, noises, clean = (loss_of_a_thief(model, each) for each in (protected, noisy, images))
    assert ours > 1.05 * noises
    assert ours > 1.05 * clean


QUICK = {"rounds": 2, "prior_images": 1}


@pytest.mark.parametrize(
    ("name", "settings"), [("mist", {}), ("ace", QUICK), ("hspace-kv", {}), ("aspl", QUICK)]
)
def test_the_model_stays_bit_for_bit_and_its_weights_never_get_a_gradient(model, name, settings):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    create(name, steps=2, **settings).protect(torch.cat([IMAGES, IMAGES.flip(3)]), model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
