"""Flow transformers loaded from disk, compared with the diffusers pipelines that wrote them."""

import pytest
import torch

from diffusion.flow import Flux, StableDiffusion3, pack, positions, unpack
from diffusion.folder import read_folder
from diffusion.losses import denoising_loss

PROMPTS = ["a cat", "the longest of many paintings"]
KINDS = ["sd3", "sd3-without-t5", "flux", "flux-schnell"]


@pytest.fixture(scope="module")
def load(pipeline):
    models = {}

    def load(kind):
        if kind not in models:
            models[kind] = read_folder(pipeline.folder(kind), name=kind, dtype=torch.float32)
        return models[kind]

    return load


@pytest.mark.parametrize("kind", KINDS)
def test_folder_becomes_a_frozen_flow_model(load, kind):
    model = load(kind)
    assert isinstance(model, Flux if kind.startswith("flux") else StableDiffusion3)
    assert (model.prediction, model.multiple, model.latent_channels) == ("flow", 4, 4)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.comfortable == (256 if kind.startswith("flux") else 32)


@pytest.mark.parametrize(("kind", "scale", "shift"), [("sd3", 1.5305, 0.0609), ("flux", 0.3611, 0.1159)])
def test_latents_are_shifted_and_scaled(load, pipeline, kind, scale, shift):
    images = torch.rand(2, 3, 32, 32)
    mean = pipeline(kind).vae.encode(2 * images - 1).latent_dist.mean
    torch.testing.assert_close(load(kind).encode(images), scale * (mean - shift))
    z = torch.randn(2, 4, 16, 16)
    expected = pipeline(kind).vae.decode(z / scale + shift).sample / 2 + 0.5
    torch.testing.assert_close(load(kind).decode(z, clamp=False), expected)


@pytest.mark.parametrize("kind", ["sd3", "sd3-without-t5"])
def test_stable_diffusion_3_condition_equals_the_pipelines(load, pipeline, kind):
    tokens, _, pooled, _ = pipeline(kind).encode_prompt(PROMPTS, None, None, device="cpu")
    measured = load(kind).condition(PROMPTS)
    torch.testing.assert_close(measured.tokens, tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(measured.pooled, pooled)


@pytest.mark.parametrize(("kind", "length"), [("flux", 512), ("flux-schnell", 256)])
def test_flux_condition_equals_the_pipelines(load, pipeline, kind, length):
    tokens, pooled, _ = pipeline(kind).encode_prompt(PROMPTS, device="cpu", max_sequence_length=length)
    measured = load(kind).condition(PROMPTS)
    torch.testing.assert_close(measured.tokens, tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(measured.pooled, pooled)


def recorded_calls(pipe, monkeypatch, **options):
    calls, forward = [], pipe.transformer.forward

    def record(*args, **kwargs):
        calls.append((kwargs, forward(*args, **kwargs)[0]))
        return (calls[-1][1],)

    monkeypatch.setattr(pipe.transformer, "forward", record)
    pipe("a cat", num_inference_steps=4, height=32, width=24, output_type="latent", **options)
    return calls


def test_stable_diffusion_3_is_called_as_the_pipeline_calls_it(load, pipeline, monkeypatch):
    model = load("sd3")
    calls = recorded_calls(pipeline("sd3"), monkeypatch, guidance_scale=1.0)
    sigmas = model.schedule.sigma
    for kwargs, expected in calls:
        # its first step is exactly a timestep of ours; later ones lie between two of them
        t = (sigmas - kwargs["timestep"] / 1000).abs().argmin().view(1)
        tolerance = 1e-5 if t == 999 else 2e-2
        output = model.predict(kwargs["hidden_states"], t, model.condition(["a cat"]))
        torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("kind", "guidance"), [("flux", 2.5), ("flux-schnell", 0.0)])
def test_flux_is_called_as_the_pipeline_calls_it(load, pipeline, monkeypatch, kind, guidance):
    model = load(kind)
    monkeypatch.setattr(model, "guidance", guidance)
    length = 512 if kind == "flux" else 256
    calls = recorded_calls(pipeline(kind), monkeypatch, guidance_scale=guidance, max_sequence_length=length)
    chosen = model.schedule.timesteps(4, size=(16, 12))
    for t, (kwargs, expected) in zip(chosen, calls, strict=True):
        assert float(kwargs["timestep"]) == pytest.approx(model.schedule.level(t)[1], abs=5e-4)
        z_t = unpack(kwargs["hidden_states"], 16, 12)
        output = model.predict(z_t, torch.tensor([t]), model.condition(["a cat"]))
        tolerance = 1e-5 if t == 999 or kind == "flux-schnell" else 2e-2
        torch.testing.assert_close(pack(output), expected, atol=tolerance, rtol=tolerance)


def test_packing_and_positions_equal_those_of_the_pipeline(pipeline):
    pipe, z = pipeline("flux"), torch.randn(2, 4, 6, 8)
    torch.testing.assert_close(pack(z), pipe._pack_latents(z, 2, 4, 6, 8))
    torch.testing.assert_close(unpack(pack(z), 6, 8), z)
    expected = pipe._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32)
    torch.testing.assert_close(positions(3, 4, z), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_picture_with_and_without_checkpointing(pipeline, kind):
    images, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 4, 8, 8)

    def gradient(model):
        leaf = images.clone().requires_grad_()
        denoising_loss(model, model.encode(leaf), noise, torch.tensor([100, 800])).sum().backward()
        return leaf.grad

    folder = pipeline.folder(kind)
    plain = gradient(read_folder(folder, name=kind, dtype=torch.float32))
    assert plain.abs().min() > 0
    checkpointed = read_folder(folder, name=kind, dtype=torch.float32).enable_checkpointing()
    assert checkpointed.transformer.is_gradient_checkpointing
    torch.testing.assert_close(gradient(checkpointed), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_an_element_does_not_depend_on_its_batch(load, kind):
    model, t = load(kind), torch.tensor([100, 800])
    z_t, condition = torch.randn(2, 4, 8, 8), model.condition(PROMPTS)
    together = model.predict(z_t, t, condition)
    alone = [
        model.predict(z_t[i : i + 1], t[i : i + 1], model.condition(PROMPTS[i : i + 1])) for i in range(2)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_published_precision_is_bfloat16(pipeline):
    model = read_folder(pipeline.folder("flux"), name="flux")
    assert model.dtype == torch.bfloat16
    z_t = torch.randn(1, 4, 8, 8)
    assert model.predict(z_t, torch.tensor([10])).dtype == torch.float32
    assert model.encode(torch.rand(1, 3, 16, 16)).dtype == torch.float32


def test_mistakes_are_named(load):
    with pytest.raises(ValueError, match="sides are multiples of 4; got 18x16: pad them first"):
        load("flux").encode(torch.rand(1, 3, 18, 16))
