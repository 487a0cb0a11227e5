"""Latent diffusion models loaded from disk, compared with the diffusers pipelines that wrote them."""

import pytest
import torch
from diffusers import AutoencoderKL

from diffusion.folder import read_folder
from diffusion.latent import Autoencoder, LatentDiffusion
from diffusion.losses import denoising_loss
from diffusion.model import Condition, NoDenoiserError

# diffusers hands tensors to numpy 2 in a deprecated way
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

PROMPTS = ["a cat", "the longest of many paintings"]


@pytest.fixture(scope="module")
def load(pipeline):
    models = {}

    def load(kind):
        if kind not in models:
            models[kind] = read_folder(pipeline.folder(kind), name=kind)
        return models[kind]

    return load


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["sd1", "sd2-v", "sdxl", "inpainting", "instruct"])
def test_folder_becomes_a_frozen_latent_model(load, kind):
    model = load(kind)
    assert isinstance(model, LatentDiffusion)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (model.name, model.multiple, model.comfortable, model.latent_channels) == (kind, 2, 32, 4)
    assert model.prediction == ("v" if kind == "sd2-v" else "epsilon")
    assert model.extra_channels == {"inpainting": 5, "instruct": 4}.get(kind, 0)
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize(("kind", "scale"), [("sd1", 0.18215), ("sdxl", 0.13025)])
def test_encode_is_the_scaled_posterior_mean(load, pipeline, images, kind, scale):
    posterior = pipeline(kind).vae.encode(2 * images - 1).latent_dist
    torch.testing.assert_close(load(kind).encode(images), scale * posterior.mean)


def test_decode_undoes_the_scale_and_clamps_only_when_asked(load, pipeline):
    z = torch.randn(2, 4, 16, 16)
    expected = pipeline("sd1").vae.decode(z / 0.18215).sample / 2 + 0.5
    torch.testing.assert_close(load("sd1").decode(z, clamp=False), expected)
    torch.testing.assert_close(load("sd1").decode(z), expected.clamp(0, 1))


@pytest.mark.parametrize("kind", ["sd1", "sd2-v"])
def test_text_condition_equals_the_pipelines(load, pipeline, kind):
    expected = pipeline(kind).encode_prompt(PROMPTS, "cpu", 1, False)[0]
    torch.testing.assert_close(load(kind).condition(PROMPTS).tokens, expected)


def test_sdxl_condition_equals_the_pipelines_and_no_prompt_is_zeros(load, pipeline):
    expected = pipeline("sdxl").encode_prompt(PROMPTS, device="cpu")
    measured = load("sdxl").condition([*PROMPTS, ""])
    torch.testing.assert_close(measured.tokens[:2], expected[0])
    torch.testing.assert_close(measured.pooled[:2], expected[2])
    torch.testing.assert_close(measured.tokens[2:], expected[1][:1])
    torch.testing.assert_close(measured.pooled[2:], expected[3][:1])


@pytest.mark.parametrize("kind", ["sd1", "sd2-v", "sdxl"])
def test_network_is_called_as_the_pipeline_calls_it(load, pipeline, kind, monkeypatch):
    pipe, model, calls = pipeline(kind), load(kind), []
    forward = pipe.unet.forward

    def record(*args, **kwargs):
        calls.append((args, kwargs, forward(*args, **kwargs)))
        return calls[-1][2]

    monkeypatch.setattr(pipe.unet, "forward", record)
    pipe("a cat", num_inference_steps=2, guidance_scale=1.0, height=32, width=24, output_type="latent")
    for (sample, t), _, expected in calls:
        output = model.predict(sample, t.long().view(1), model.condition(["a cat"]))
        torch.testing.assert_close(output, expected[0])


def test_without_condition_the_empty_prompt_is_meant(load):
    model, z_t, t = load("sd1"), torch.randn(2, 4, 16, 16), torch.tensor([3, 800])
    torch.testing.assert_close(model.predict(z_t, t), model.predict(z_t, t, model.condition(["", ""])))
    torch.testing.assert_close(model.predict(z_t, t), model.predict(z_t, t, Condition()))


def test_inpainting_condition_equals_what_the_pipeline_prepares(load, pipeline, images):
    model, pipe = load("inpainting"), pipeline("inpainting")
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 4:30] = 0.7
    mask[..., :4, :4] = 0.3
    measured = model.inpainting(Condition(), images, mask).concat
    visible = (2 * images - 1) * (mask < 0.5)
    latents = pipe.vae.encode(visible).latent_dist.mean * 0.18215
    expected_mask, expected = pipe.prepare_mask_latents(
        (mask >= 0.5).float(), latents, 2, 32, 32, torch.float32, "cpu", None, False
    )
    torch.testing.assert_close(measured, torch.cat([expected_mask, expected], dim=1))
    assert model.predict(
        torch.randn(2, 4, 16, 16), torch.tensor([5, 6]), Condition(concat=measured)
    ).shape == (
        2,
        4,
        16,
        16,
    )


def test_gradients_reach_the_visible_pixels_only(load, images):
    model, mask = load("inpainting"), torch.zeros(2, 1, 32, 32)
    mask[..., 10:, :] = 1
    images.requires_grad_()
    condition = model.inpainting(model.condition(["a cat"]), images, mask)
    model.predict(torch.randn(2, 4, 16, 16), torch.tensor([751, 751]), condition).square().sum().backward()
    assert images.grad[:, :, :10].abs().min() > 0
    assert images.grad[:, :, 10:].abs().max() == 0


def test_editing_condition_is_the_unscaled_latent(load, pipeline, images):
    model = load("instruct")
    condition = model.editing(model.condition(["a cat"]), images)
    torch.testing.assert_close(
        condition.concat, pipeline("instruct").vae.encode(2 * images - 1).latent_dist.mode()
    )
    assert model.predict(torch.randn(2, 4, 16, 16), torch.tensor([5, 6]), condition).shape == (2, 4, 16, 16)


def test_an_element_does_not_depend_on_its_batch(load, images):
    model, t = load("sdxl"), torch.tensor([10, 900])
    z, noise = model.encode(images), torch.randn(2, 4, 16, 16)
    condition = model.condition(PROMPTS)
    together = denoising_loss(model, z, noise, t, condition)
    alone = [
        denoising_loss(
            model, z[i : i + 1], noise[i : i + 1], t[i : i + 1], model.condition(PROMPTS[i : i + 1])
        )
        for i in range(2)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_checkpointing_changes_no_gradient(pipeline, images, kind):
    t, noise = torch.tensor([10, 900]), torch.randn(2, 4, 16, 16)

    def gradient(model):
        leaf = images.clone().requires_grad_()
        denoising_loss(model, model.encode(leaf), noise, t).sum().backward()
        return leaf.grad

    plain = gradient(read_folder(pipeline.folder(kind), name=kind))
    model = read_folder(pipeline.folder(kind), name=kind).enable_checkpointing()
    assert model.vae.is_gradient_checkpointing
    assert model.unet.is_gradient_checkpointing
    torch.testing.assert_close(gradient(model), plain)


def test_half_precision_weights_take_and_return_float32(pipeline, images):
    model = read_folder(pipeline.folder("sd1"), name="sd1", dtype=torch.bfloat16)
    exact = read_folder(pipeline.folder("sd1"), name="sd1")
    z, t = model.encode(images), torch.tensor([10, 900])
    assert (model.dtype, z.dtype, model.predict(z, t).dtype, model.decode(z).dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
        torch.float32,
    )
    torch.testing.assert_close(model.predict(z, t), exact.predict(z, t), atol=0.1, rtol=0.1)


def test_an_autoencoder_that_overflows_is_kept_out_of_float16(pipeline, images):
    model = read_folder(pipeline.folder("sdxl"), name="sdxl", dtype=torch.float16)
    assert (model.unet.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    exact = read_folder(pipeline.folder("sdxl"), name="sdxl")
    with torch.autocast("cpu", dtype=torch.float16):
        torch.testing.assert_close(model.encode(images), exact.encode(images))


def test_only_the_denoiser_of_a_trainable_copy_is_copied(pipeline, images):
    model = read_folder(pipeline.folder("sd1"), name="sd1")
    twin = model.trainable_copy()
    assert twin.vae is model.vae
    assert twin.texts[0] is model.texts[0]
    assert twin.schedule is model.schedule
    assert all(parameter.requires_grad for parameter in twin.denoiser.parameters())
    loss = denoising_loss(twin, model.encode(images), torch.randn(2, 4, 16, 16), torch.tensor([10, 900]))
    torch.optim.SGD(twin.denoiser.parameters(), lr=1.0).zero_grad()
    loss.sum().backward()
    torch.optim.SGD(twin.denoiser.parameters(), lr=1.0).step()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not torch.equal(twin.unet.conv_in.weight, model.unet.conv_in.weight)


@pytest.mark.parametrize("whole", [True, False])
def test_autoencoder_alone_encodes_and_says_that_it_cannot_denoise(pipeline, images, whole):
    folder = pipeline.folder("sd1") if whole else pipeline.folder("sd1") / "vae"
    model = read_folder(folder, name="vae", denoiser=False)
    assert isinstance(model, Autoencoder)
    assert not model.has_denoiser
    assert model.dtype == torch.float32
    expected = AutoencoderKL.from_pretrained(pipeline.folder("sd1") / "vae").encode(2 * images - 1)
    torch.testing.assert_close(model.encode(images), expected.latent_dist.mean * 0.18215)
    assert model.decode(model.encode(images)).shape == images.shape
    for denoise in (model.predict_noise, model.predict):
        with pytest.raises(
            NoDenoiserError, match="vae is an autoencoder without a denoiser: load a full model"
        ):
            denoise(torch.randn(1, 4, 16, 16), torch.tensor([1]), model.condition(["a cat"]))
    with pytest.raises(NoDenoiserError):
        model.trainable_copy()


def test_distilled_autoencoder_works_alone(tiny_autoencoder, images):
    reference, folder = tiny_autoencoder
    model = read_folder(folder, name="taesd")
    torch.testing.assert_close(model.encode(images), reference.encode(2 * images - 1).latents)
    z = model.encode(images)
    torch.testing.assert_close(model.decode(z, clamp=False), reference.decode(z).sample / 2 + 0.5)
    assert model.multiple == 2


def test_mistakes_are_named(load, images):
    with pytest.raises(ValueError, match="sides are multiples of 2; got 31x32: pad them first"):
        load("sd1").encode(images[:, :, 1:])
    with pytest.raises(
        ValueError, match=r"the U-Net of inpainting takes 9 channels; got 4: pass model.inpainting"
    ):
        load("inpainting").predict(torch.randn(1, 4, 16, 16), torch.tensor([1]))
    with pytest.raises(ValueError, match="sd1 is not made for inpainting: load an inpainting model"):
        load("sd1").inpainting(Condition(), images, torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="sd1 does not follow instructions"):
        load("sd1").editing(Condition(), images)
    with pytest.raises(ValueError, match="takes 4 channels; got 8: drop the condition's concat"):
        load("sd1").predict(
            *[torch.randn(1, 4, 16, 16), torch.tensor([1])], Condition(concat=torch.randn(1, 4, 16, 16))
        )
    with pytest.raises(ValueError, match="tokens holds 3 rows; expected 1 or the batch size, 2"):
        load("sd1").predict(torch.randn(2, 4, 16, 16), torch.tensor([1, 2]), load("sd1").condition(["a"] * 3))
