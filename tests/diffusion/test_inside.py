"""Looking inside a network: attention, features, embeddings put in the place of others, and inversions."""

from itertools import product

import pytest
import torch
from torch import nn

from diffusion.attention import recorded_attention
from diffusion.features import (
    bottleneck,
    encoder_scales,
    features,
    kernel_distance,
    replaced_output,
    seen_at,
    wasserstein,
)
from diffusion.ideal import IdealDenoiser
from diffusion.inversion import inverted, null_text
from diffusion.latent import Autoencoder, LatentDiffusion
from diffusion.load import load
from diffusion.samplers import ddim_invert, ddim_mean, denoise, steps_of
from diffusion.schedule import NoiseSchedule


@pytest.fixture(scope="module")
def classes(small_prior):
    return small_prior(16, ("ant", "bee", "cat"))


@pytest.fixture(scope="module")
def builtin():
    return load("builtin")


def _call(model, side):
    torch.manual_seed(1)
    z = model.encode(torch.rand(2, 3, side, side))
    return z, torch.full((2,), 200)


@pytest.mark.parametrize("name", ["classes", "builtin"])
def test_recording_attention_changes_no_output_and_leaves_no_trace(name, request):
    model = request.getfixturevalue(name)
    z, t = _call(model, 64)
    processors = [type(layer.processor) for layer in model.modules() if hasattr(layer, "processor")]
    with torch.no_grad():
        plain = model.predict(z, t)
        with recorded_attention(model.denoiser) as maps:
            recorded = model.predict(z, t)
        with pytest.raises(RuntimeError, match="stop"), recorded_attention(model.denoiser):
            raise RuntimeError("stop")
        after = model.predict(z, t)
    torch.testing.assert_close(recorded, plain, atol=1e-4, rtol=1e-4)
    assert torch.equal(after, plain)
    assert [type(layer.processor) for layer in model.modules() if hasattr(layer, "processor")] == processors
    assert maps
    for each in maps:
        torch.testing.assert_close(each.weights.sum(-1), torch.ones_like(each.weights[..., 0]))


def test_recorded_attention_is_the_softmax_of_queries_and_keys(builtin):
    layers = dict(builtin.denoiser.named_modules())
    given = {}
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    handle = layers[name].register_forward_pre_hook(
        lambda layer, args, kwargs: given.update(states=args[0], **kwargs), with_kwargs=True
    )
    z, t = _call(builtin, 64)
    with torch.no_grad(), recorded_attention(builtin.denoiser) as maps:
        builtin.predict(z, t, builtin.condition(["a red house", "boats"]))
    handle.remove()
    layer = layers[name]
    with torch.no_grad():
        queries = layer.to_q(given["states"]).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        keys = layer.to_k(given["encoder_hidden_states"]).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    expected = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1)
    (found,) = [each for each in maps if each.layer == name]
    assert found.cross
    torch.testing.assert_close(found.weights, expected, atol=1e-5, rtol=1e-4)


def test_features_are_the_layers_outputs_and_the_network_stops_after_the_last(classes):
    z, t = _call(classes, 16)
    layers, seen, ran = bottleneck(classes), [], []
    handles = [layer.register_forward_hook(lambda *given: seen.append(given[2])) for layer in layers]
    with torch.no_grad():
        classes.predict(z, t)
    for handle in handles:
        handle.remove()
    handle = classes.unet.conv_out.register_forward_hook(lambda *_: ran.append(True))
    z.requires_grad_()
    found = features(classes, z, t, layers=layers)
    handle.remove()
    assert not ran
    for one, other in zip(found, seen, strict=True):
        torch.testing.assert_close(one, other)
    (gradient,) = torch.autograd.grad(sum(each.sum() for each in found), z)
    assert gradient.abs().sum() > 0
    assert not any(layer._forward_hooks for layer in classes.unet.modules())


def test_features_of_a_layer_that_never_runs_are_refused(classes):
    z, t = _call(classes, 16)
    with pytest.raises(ValueError, match="0 of 1 layers ran"):
        features(classes, z, t, layers=[nn.Conv2d(3, 3, 1)])
    with pytest.raises(ValueError, match="ideal has no U-Net"):
        bottleneck(IdealDenoiser(torch.rand(2, 3, 4, 4), NoiseSchedule.linear()))


@pytest.mark.parametrize(("channels", "side"), [(12, 2), (3, 4)])
def test_wasserstein_is_the_formula_with_matrix_roots(channels, side):
    """Against the eigenvalues of S_1^(1/2) S_2 S_1^(1/2), decomposed as written."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 3, channels, side, side, generator=generator, dtype=torch.float64)
    for floor in (0.1, 0.0):
        expected = []
        for a, b in zip(one.flatten(2), other.flatten(2), strict=True):
            means = (a.mean(1) - b.mean(1)).square().mean()
            spread = [x - x.mean(1, keepdim=True) for x in (a, b)]
            scatter = [x @ x.T for x in spread]
            values, vectors = torch.linalg.eigh(scatter[0])
            root = vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T
            middle = torch.linalg.eigvalsh(root @ scatter[1] @ root).clamp_min(floor).sqrt().sum()
            expected.append(means + scatter[0].trace() + scatter[1].trace() - 2 * middle)
        torch.testing.assert_close(
            wasserstein(one, other, floor=floor), torch.stack(expected), atol=1e-5, rtol=0
        )


def test_wasserstein_of_equal_features_is_zero_and_its_gradient_agrees_with_differences():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 1, 6, 2, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(wasserstein(one, one, floor=0.0), torch.zeros(1, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: wasserstein(x, other), one.clone().requires_grad_())


@pytest.mark.parametrize("name", ["classes", "builtin"])
def test_prompts_looked_up_by_hand_tell_the_model_the_same(name, request):
    model, side = request.getfixturevalue(name), 64
    prompts = ["ant", "cat"] if name == "classes" else ["a red house", "boats"]
    z, t = _call(model, side)
    rows = model.rows(prompts)
    with torch.no_grad():
        plain = model.predict(z, t, model.condition(prompts))
        assert torch.equal(model.predict(z, t, model.condition(prompts, rows=rows)), plain)
        assert not torch.equal(model.predict(z, t, model.condition(prompts, rows=rows + 1)), plain)
        assert torch.equal(model.predict(z, t, model.condition(prompts)), plain)
    leaf = rows.clone().requires_grad_()
    told = model.condition(prompts, rows=leaf)
    (gradient,) = torch.autograd.grad(model.predict(z, t, told).square().sum(), leaf)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_words_are_the_prompts_own_tokens(builtin):
    words = builtin.words(["boats", ""])
    ids = builtin.texts[0].ids(["boats", ""])
    tokenizer = builtin.texts[0].tokenizer
    assert tokenizer.decode(ids[0][words[0]]).strip() == "boats"
    assert not words[1].any()


def test_a_model_that_is_told_nothing_looks_up_nothing():
    ideal = IdealDenoiser(torch.rand(2, 3, 4, 4), NoiseSchedule.linear())
    with pytest.raises(ValueError, match="ideal looks up no embedding"):
        ideal.rows(["a"])


def test_replaced_output_holds_inside_only():
    layer = nn.Linear(2, 2)
    x, other = torch.rand(1, 2), torch.rand(1, 2)
    plain = layer(x)
    with replaced_output(layer, other):
        assert layer(x) is other
    assert torch.equal(layer(x), plain)


def test_an_inversion_ends_where_the_sampler_says(classes):
    z, _ = _call(classes, 16)
    timesteps = classes.schedule.timesteps(10)[-4:]
    with torch.no_grad():
        states = inverted(classes, z, timesteps=timesteps)
        assert torch.equal(states[0], ddim_invert(classes, z, timesteps=timesteps))
    assert torch.equal(states[-1], z)
    assert len(states) == 5


@pytest.mark.parametrize("name", ["classes", "builtin"])
def test_null_text_leads_guided_steps_back_to_the_picture(name, request):
    model = request.getfixturevalue(name)
    z, _ = _call(model, 64)
    timesteps = model.schedule.timesteps(20)[-3:]
    told = model.condition(["ant", "cat"] if name == "classes" else ["a red house", "boats"])
    with torch.no_grad():
        states = inverted(model, z, timesteps=timesteps)
    fitted = null_text(model, states, told, timesteps=timesteps, guidance=5.0)

    def arrive(blanks):
        z_t = states[0]
        for step, blank in zip(
            steps_of(model.schedule, timesteps, model.schedule.final), blanks, strict=True
        ):
            z_t = ddim_mean(step, *denoise(model, z_t, step, told, blank, 5.0, clip=False))
        return (z_t - z).square().flatten(1).mean(1)

    with torch.no_grad():
        plain = arrive([model.condition([""])] * 3)
        found = arrive(fitted)
    assert (found < 0.7 * plain).all(), f"{found} against {plain} without"


def test_null_text_has_nothing_to_fit_in_a_model_that_is_told_nothing():
    ideal = IdealDenoiser(torch.rand(2, 3, 4, 4), NoiseSchedule.linear())
    z = ideal.encode(torch.rand(1, 3, 4, 4))
    timesteps = ideal.schedule.timesteps(10)[-2:]
    states = inverted(ideal, z, timesteps=timesteps)
    assert len(null_text(ideal, states, ideal.condition([""]), timesteps=timesteps, guidance=3.0)) == 2


def test_a_model_of_two_text_encoders_says_that_it_has_no_one_table(builtin):
    model = LatentDiffusion.__new__(LatentDiffusion)
    nn.Module.__init__(model)
    model._told_size, model.name = True, "two"
    with pytest.raises(ValueError, match="two reads prompts with two encoders"):
        model.rows(["a"])


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_each_scale_of_an_encoder_is_half_the_one_before_and_the_last_makes_the_latent(kind, builtin):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    model = builtin if kind == "kl" else Autoencoder(AutoencoderTiny(), name="tiny")
    images = torch.rand(1, 3, 64, 32)
    layers = encoder_scales(model)
    assert [tuple(seen_at(model, images, scale).shape[-2:]) for scale in range(4)] == [
        (64, 32),
        (32, 16),
        (16, 8),
        (8, 4),
    ]
    assert len(layers) == 4
    torch.testing.assert_close(seen_at(model, images, 9), model.encode(images))
    with replaced_output(layers[-1], torch.zeros_like(seen_at(model, images, 3))):
        emptied = model.encode(images)
    assert (emptied - model.encode(images)).abs().max() > 0.01, "the latent is made of the last scale"


def test_what_an_encoder_sees_early_is_computed_without_the_rest_of_it(builtin):
    ran = []
    late = encoder_scales(builtin)[2]
    handle = late.register_forward_hook(lambda *_: ran.append(1))
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    seen_at(builtin, images, 1).square().sum().backward()
    handle.remove()
    assert ran == []
    assert (images.grad != 0).any()
    assert not any(layer._forward_hooks for layer in encoder_scales(builtin))


def test_a_model_of_pixels_sees_the_picture_at_every_scale(classes):
    images = torch.rand(1, 3, 16, 16)
    assert encoder_scales(classes) == []
    assert torch.equal(seen_at(classes, images, 1), classes.encode(images))


def test_the_discrepancy_is_the_average_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)
    scale = float(y.square().mean()) ** 0.5

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / scale**2 / 3 + 1) ** 3

    within = [
        sum(kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j) / pairs
        for rows, pairs in ((x, 12), (y, 20))
    ]
    across = sum(kernel(a, b) for a, b in product(x, y)) / 20
    assert kernel_distance(x, y) == pytest.approx(sum(within) - 2 * across, rel=1e-4)
    assert kernel_distance(7 * x, 7 * y) == pytest.approx(kernel_distance(x, y), rel=1e-4)


def test_the_discrepancy_of_one_distribution_is_zero_on_average_and_grows_with_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    same = [kernel_distance(*torch.randn(2, 6, 8, generator=generator)) for _ in range(2000)]
    assert sum(same) / len(same) == pytest.approx(0, abs=0.05)
    x, y = torch.randn(2, 50, 8, generator=generator)
    assert kernel_distance(x, y) < kernel_distance(x + 0.5, y) < kernel_distance(x + 1, y)
    with pytest.raises(ValueError, match="two samples and two references"):
        kernel_distance(x[:1], y)
