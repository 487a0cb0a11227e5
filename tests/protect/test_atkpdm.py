"""AtkPDM moves the features of a pixel model within its bound, and says which models it is not for."""

import pytest
import torch
from torch import Tensor

from diffusion.features import bottleneck, features, wasserstein
from diffusion.known import MissingWeightsError
from diffusion.load import load
from protect.methods import create

EPS = 8 / 255
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(small_prior):
    return small_prior(16, ("cat", "dog"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def apart(model, images: Tensor) -> Tensor:
    """How far the features are from the originals', over a bank of times and noises that no run has met."""
    layers, generator, total = bottleneck(model), seeded(77), torch.zeros(len(images))
    for _ in range(16):
        t = torch.randint(500, (1,), generator=generator).expand(len(images))
        noise = torch.randn(1, 3, 16, 16, generator=generator).expand_as(images)
        pair = [
            features(model, model.schedule.add_noise(model.encode(each), noise, t), t, layers=layers)
            for each in (IMAGES, images)
        ]
        for one, other in zip(*pair, strict=True):
            total += wasserstein(one, other)
    return total


def noisy() -> Tensor:
    signs = (torch.rand(IMAGES.shape, generator=seeded(2)) < 0.5) * 2 * EPS - EPS
    return (IMAGES + signs).clamp(0, 1)


def test_features_move_further_than_by_noise_of_the_same_size(model):
    protected = create("atkpdm", steps=30, step_size=1 / 255).protect(IMAGES, model, generator=seeded())
    assert (protected - IMAGES).abs().max() <= EPS + 1e-6
    unmoved = apart(model, IMAGES)
    moved, jostled = (apart(model, images) - unmoved for images in (protected, noisy()))
    assert (moved > 1.5 * jostled).all(), f"moved by {moved}, by noise {jostled}"


def test_shape_and_survival_apply(model):
    method = create("atkpdm", steps=4, shape="luma", survive=("jpeg",))
    change = method.protect(IMAGES, model, generator=seeded()) - IMAGES
    torch.testing.assert_close(change, change[:, :1].expand_as(change))
    assert change.abs().max() > 1 / 255


def test_it_runs_in_half_precision(model):
    method = create("atkpdm", steps=3)
    protected = method.protect(IMAGES, model, generator=seeded(), precision=torch.bfloat16)
    assert (protected - IMAGES).abs().max() > 1 / 255


@pytest.fixture
def with_codec(tiny_autoencoder):
    return create("atkpdm", steps=6, step_size=0.02, codec=str(tiny_autoencoder))


def test_the_latent_of_a_codec_is_changed_and_cut_down_to_the_bound(model, with_codec, tiny_autoencoder):
    images = IMAGES[..., :13, :]  # a side that no network can take
    mask = torch.zeros(1, 1, 13, 16)
    mask[..., 3:] = 1
    protected = with_codec.protect(images, model, mask=mask, generator=seeded())
    assert torch.equal(protected[..., :3], images[..., :3])
    change = (protected - images)[..., 3:]
    assert change.abs().max() == pytest.approx(EPS, abs=1e-6)
    # A random autoencoder returns another picture, whatever its latent: most of the change is cut.
    codec = load(str(tiny_autoencoder), denoiser=False)
    decoded = codec.decode(codec.encode(torch.nn.functional.pad(images, (0, 0, 0, 3), mode="reflect")))
    towards = (decoded[..., :13, :] - images)[..., 3:]
    assert (towards.abs() > EPS).float().mean() > 0.5
    assert (change.sign() == towards.sign()).float().mean() > 0.9


def test_steps_of_the_latent_are_told(model, with_codec):
    seen = []
    with_codec.protect(IMAGES, model, callback=lambda step, images, losses: seen.append((step, losses.shape)))
    assert seen == [(step, (2,)) for step in range(6)]


def test_a_codec_that_is_not_here_is_not_fetched(model):
    with pytest.raises(MissingWeightsError, match="sd-vae"):
        create("atkpdm", codec="sd-vae").protect(IMAGES, model)


def test_models_of_latents_are_refused_in_one_line(tiny_diffusion):
    model = load(str(tiny_diffusion))
    with pytest.raises(
        ValueError, match="made against models of plain pixels, and model works on latents"
    ) as it:
        create("atkpdm").protect(IMAGES, model)
    assert "\n" not in str(it.value)


def test_pixel_models_without_a_u_net_are_refused(world):
    with pytest.raises(ValueError, match="pixel-world has no U-Net"):
        create("atkpdm").protect(IMAGES, world)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"times": (500, 100)}, "times are two numbers, the lower first; got 500, 100"),
        ({"times": (3,)}, "times are two numbers, the lower first; got 3"),
        ({"codec": "sd-vae", "survive": ("blur",)}, "leave out codec, or survive and shape"),
        ({"codec": "sd-vae", "shape": "luma"}, "leave out codec, or survive and shape"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        create("atkpdm", **settings)


def test_times_beyond_the_schedule_are_refused(model):
    with pytest.raises(ValueError, match="random has 1000 timesteps; got times to 1500"):
        create("atkpdm", times=(0, 1500)).protect(IMAGES, model)
