"""Methods that ascend or follow the denoising loss, on models that say a velocity along straight paths."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from attacks.objectives import value_and_gradient
from diffusion.flow import Flux, StableDiffusion3
from diffusion.schedule import NoiseSchedule, ResolutionShift
from protect.methods import create
from protect.methods.draws import draw_noise
from protect.targets import texture


class _Said(NamedTuple):
    pooled: Tensor
    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, Tensor]


class _OneText(nn.Module):
    """A text encoder that says the same whatever it is told."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens, self.pooled = (
            nn.Parameter(torch.randn(*shape)) for shape in ((1, 5, width), (1, width))
        )

    def forward(self, prompts, *, hidden=False, rows=None):
        tokens, pooled = self.tokens.expand(len(prompts), -1, -1), self.pooled.expand(len(prompts), -1)
        return _Said(pooled, tokens, pooled, (tokens, tokens))


def _autoencoder(scale: float, shift: float):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _stable_diffusion_3():
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    schedule, texts = NoiseSchedule.rectified_flow(shift=3.0), [_OneText(16), _OneText(16)]
    return StableDiffusion3(_autoencoder(1.5305, 0.0609), transformer, schedule, texts=texts, name="tiny-sd3")


def _flux():
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    schedule = NoiseSchedule.rectified_flow(resolution_shift=ResolutionShift())
    texts = [_OneText(16), _OneText(32)]
    return Flux(_autoencoder(0.3611, 0.1159), transformer, schedule, texts=texts, name="tiny-flux")


@pytest.fixture(scope="module", params=[_stable_diffusion_3, _flux], ids=["sd3", "flux"])
def model(request):
    torch.manual_seed(0)
    made = request.param()
    for parameter in made.denoiser.parameters():  # diffusers starts modulations at zero, where nothing passes
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return made


IMAGES = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
SETTINGS = {"eps": 16 / 255, "step_size": 2 / 255, "steps": 15}


def velocity_errors(model, z: Tensor, noise: Tensor, t: Tensor, condition) -> Tensor:
    """`v(z_sigma) - (noise - z)` on the straight path, written out."""
    sigma = model.schedule.sigma[t].view(-1, 1, 1, 1)
    said = model.predict((1 - sigma) * z + sigma * noise, t, condition)
    return said - (noise - z)


@torch.no_grad()
def difficulty(model, images: Tensor) -> float:
    """The velocity loss over a bank of 64 times and noises that no method has met."""
    generator = torch.Generator().manual_seed(99)
    z = model.encode(images).expand(64, -1, -1, -1)
    t = torch.randint(1000, (64,), generator=generator)
    noise = torch.randn(z.shape, generator=generator)
    return velocity_errors(model, z, noise, t, model.condition(["a painting"])).square().mean().item()


@torch.no_grad()
def distance_to_texture(model, images: Tensor) -> float:
    return (model.encode(images) - model.encode(texture(32, 32))).square().mean().item()


def protected(model, name: str) -> Tensor:
    return create(name, **SETTINGS).protect(IMAGES, model, generator=torch.Generator().manual_seed(1))


def gain(model, images: Tensor) -> float:
    return difficulty(model, images) - difficulty(model, IMAGES)


@pytest.fixture(scope="module")
def by_chance(model) -> float:
    """How much noise of the same size changes the loss, in either direction."""
    signs = (torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(5)) < 0.5) * 2 - 1
    return abs(gain(model, (IMAGES + SETTINGS["eps"] * signs).clamp(0, 1)))


@pytest.mark.parametrize("name", ["advdm", "sds-plus", "mist-semantic"])
def test_ascending_makes_the_picture_harder_to_denoise(model, by_chance, name):
    assert gain(model, protected(model, name)) > 2 * by_chance


@pytest.mark.parametrize("name", ["advdm-minus", "sds-minus"])
def test_descending_makes_the_picture_easier_to_denoise(model, by_chance, name):
    assert gain(model, protected(model, name)) < -2 * by_chance


def test_mist_comes_closer_to_the_texture_than_its_semantic_half(model):
    fused, semantic = (distance_to_texture(model, protected(model, n)) for n in ("mist", "mist-semantic"))
    assert fused < 0.95 * distance_to_texture(model, IMAGES)
    assert fused < semantic


@pytest.mark.parametrize("name", ["advdm", "sds-plus"])
def test_the_gradient_is_that_of_the_velocity_loss_and_its_target_counts(model, name):
    """The target `noise - z` moves with the picture. SDS leaves out the network's Jacobian."""
    method = create(name)
    generator = torch.Generator().manual_seed(0)
    objective = method.objective(model, IMAGES, target=IMAGES, mask=None, generator=generator)
    _, gradient = value_and_gradient(objective, IMAGES)
    condition = model.condition([method.prompt])
    t, noise = draw_noise(model, model.encode(IMAGES), torch.Generator().manual_seed(0))

    def naive(images):
        z = model.encode(images)
        errors = velocity_errors(model, z, noise, t, condition)
        if name == "sds-plus":
            return (errors.detach() * z).sum(dim=(1, 2, 3))
        return errors.square().mean(dim=(1, 2, 3))

    expected = value_and_gradient(naive, IMAGES)[1]
    assert ((gradient - expected).norm() / expected.norm()).item() < 1e-4


def test_times_are_uniform_over_the_steps_of_the_schedule(model):
    """And so shifted towards noise where the schedule is, as Stable Diffusion 3's."""
    generator, z = torch.Generator().manual_seed(0), model.encode(IMAGES)
    times = torch.stack([draw_noise(model, z, generator)[0][0] for _ in range(2000)])
    assert times.float().mean().item() == pytest.approx(499.5, abs=25)
    middle = model.schedule.sigma[500].item()
    assert middle == pytest.approx(0.75 if isinstance(model, StableDiffusion3) else 0.5, abs=0.01)
