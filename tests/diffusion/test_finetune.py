"""Fine-tuning: what trains, what stays bit for bit, gradients against finite differences, and the prior's
share of an optimum known in closed form."""

import pytest
import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import nn

from diffusion.finetune import Concept, attention_projections, embed, imagine, low_rank, train
from diffusion.folder import read_folder
from diffusion.ideal import IdealDenoiser
from diffusion.losses import denoising_loss
from diffusion.model import Condition, DiffusionModel
from diffusion.schedule import NoiseSchedule

# diffusers hands tensors to numpy 2 in a deprecated way
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
KINDS = ["sd1", "sd2-v", "sdxl", "sd3", "flux", "pixel"]


@pytest.fixture(scope="module")
def load(pipeline):
    models = {}

    def load(kind):
        if kind not in models:
            models[kind] = read_folder(pipeline.folder(kind), name=kind)
        return models[kind]

    return load


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def latents(model, count=2, side=8):
    return torch.randn(count, model.latent_channels, side, side, generator=seeded(3))


def told(model, prompts=("a cat",)):
    return model.condition(list(prompts))


@torch.no_grad()
def difficulty(model, z, condition):
    """The mean loss over a fixed bank of 32 times and noises."""
    generator = seeded(99)
    total = 0.0
    for _ in range(32):
        t = torch.randint(1000, (1,), generator=generator).expand(len(z))
        total += denoising_loss(model, z, torch.randn(z.shape, generator=generator), t, condition).mean()
    return float(total) / 32


def trained(module):
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(after[name], before[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_map_around_every_attention_is_adapted(load, kind):
    model = load(kind)
    expected = {
        f"{name}.{inner}" if name else inner
        for name, layer in model.denoiser.named_modules()
        if isinstance(layer, (Attention, AttentionModuleMixin))
        for inner, map_ in layer.named_modules()
        if isinstance(map_, nn.Linear)
    }
    assert set(attention_projections(model)) == expected
    adapted = {
        n.partition(".lora_A")[0] for n, p in low_rank(model).denoiser.named_parameters() if p.requires_grad
    }
    assert {name.partition(".lora_B")[0] for name in adapted} == expected


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_adapters_of_any_rank_start_as_the_model_itself(load, kind):
    model = load(kind)
    twin, z, t = low_rank(model, rank=3), latents(model), torch.tensor([10, 700])
    assert torch.equal(twin.predict(z, t, told(model)), model.predict(z, t, told(model)))
    shapes = {p.shape for n, p in twin.denoiser.named_parameters() if "lora_A" in n}
    assert {shape[0] for shape in shapes} == {3}


@pytest.mark.parametrize("kind", KINDS)
def test_training_adapters_moves_nothing_but_them_and_lowers_the_loss(load, kind):
    model = load(kind)
    before, z = snapshot(model), latents(model)
    twin = low_rank(model, generator=seeded())
    adapters = trained(twin)
    assert adapters
    assert all("lora_" in name for name in adapters)
    start = difficulty(twin, z, told(model))
    train(twin, z, told(model), steps=30, learning_rate=2e-2, batch_size=2, generator=seeded())
    assert_same(model, before)
    assert all(p.grad is None for p in [*model.parameters(), *twin.parameters()])
    assert not any(p.requires_grad for p in model.parameters())
    assert difficulty(model, z, told(model)) == start
    assert difficulty(twin, z, told(model)) < 0.999 * start


def test_a_twin_shares_every_frozen_tensor_and_draws_its_adapters_from_the_generator(load):
    model = load("sd1")
    global_state = torch.get_rng_state()
    one, same, other = (low_rank(model, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), global_state)
    assert one.codec is model.codec
    own = {p.data_ptr() for p in model.parameters()}
    frozen = [p for p in one.parameters() if not p.requires_grad]
    assert {p.data_ptr() for p in frozen} == own
    adapters = [
        torch.cat([p.flatten() for p in each.parameters() if p.requires_grad]) for each in (one, same, other)
    ]
    assert torch.equal(adapters[0], adapters[1])
    assert not torch.equal(adapters[0], adapters[2])


@pytest.mark.parametrize("full", [True, False])
def test_gradients_of_what_trains_equal_finite_differences(pipeline, full):
    """Convolutions of a frozen model keep no input for their weights; those of a twin have to."""
    model = read_folder(pipeline.folder("sd1"), name="sd1").double()
    twin = model.trainable_copy() if full else low_rank(model, generator=seeded())
    for parameter in twin.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=seeded(), dtype=torch.float64)
    z, condition = latents(model, 1).double(), told(model)
    noise, t = torch.randn(z.shape, generator=seeded(1), dtype=torch.float64), torch.tensor([400])
    weights = list(trained(twin).values())
    found = torch.autograd.grad(denoising_loss(twin, z, noise, t, condition).sum(), weights)
    for parameter, gradient in zip(weights, found, strict=True):
        direction = torch.randn(parameter.shape, generator=seeded(2), dtype=torch.float64)
        sides = []
        for step in (1e-5, -1e-5):
            parameter.data += step * direction
            with torch.no_grad():
                sides.append(denoising_loss(twin, z, noise, t, condition).item())
            parameter.data -= step * direction
        slope = (sides[0] - sides[1]) / 2e-5
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_all_weights_of_a_copy_train_or_only_those_that_are_named(load):
    model = load("sd1")
    before, z = snapshot(model), latents(model)
    twin = model.trainable_copy()
    start = difficulty(twin, z, told(model))
    train(twin, z, told(model), steps=30, learning_rate=1e-3, generator=seeded())
    assert_same(model, before)
    assert difficulty(twin, z, told(model)) < start
    twin = model.trainable_copy().requires_grad_(False)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    train(
        twin,
        z,
        told(model),
        parameters=[twin.denoiser.get_parameter(name)],
        steps=2,
        learning_rate=1e-3,
        generator=seeded(),
    )
    moved = [
        n for n, p in twin.denoiser.named_parameters() if not torch.equal(p, model.denoiser.get_parameter(n))
    ]
    assert moved == [name]
    assert not any(p.requires_grad for p in twin.parameters())


def test_adapters_train_in_float32_on_a_model_in_half_precision(pipeline):
    model = read_folder(pipeline.folder("sd1"), name="sd1", dtype=torch.bfloat16)
    twin = low_rank(model)
    assert {p.dtype for p in twin.parameters() if p.requires_grad} == {torch.float32}
    train(twin, latents(model), told(model), steps=2, learning_rate=1e-2, generator=seeded())
    with pytest.raises(ValueError, match=r"half precision loses small updates"):
        train(model.trainable_copy(), latents(model), told(model), steps=1, learning_rate=1e-2)


def test_what_runs_after_training_in_one_autocast_sees_the_trained_weights(load):
    """Autocast keeps the halved weights of its first step unless it is told to forget them."""
    model, t = load("sd1"), torch.tensor([300])
    twin, z = low_rank(model, generator=seeded()), latents(model, 1)
    with torch.autocast("cpu", torch.bfloat16):
        train(twin, z, told(model), steps=2, learning_rate=1e-1, generator=seeded())
        within = twin.predict(z, t, told(model))
    with torch.autocast("cpu", torch.bfloat16):
        after = twin.predict(z, t, told(model))
    assert torch.equal(within, after)


class OneNumber(DiffusionModel):
    """Says the same clean `z` whatever it is shown, so that the best number is known."""

    def __init__(self):
        super().__init__(
            NoiseSchedule.linear(),
            prediction="sample",
            name="one",
            multiple=1,
            latent_channels=1,
            comfortable=8,
        )
        self.network = nn.Linear(1, 1, bias=False)
        self.seen = []
        self.freeze()

    @property
    def denoiser(self):
        return self.network

    def encode(self, images):
        return images

    def decode(self, z, *, clamp=True):
        return z

    def predict(self, z_t, t, condition=None):
        if condition is not None:
            self.seen.append((len(z_t), condition.tokens.flatten().tolist()))
        return self.network.weight.expand_as(z_t) + 0 * z_t

    def condition(self, prompts):
        return Condition()


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 3.0])
def test_the_prior_enters_with_its_weight(weight):
    # (b - 1)^2 + w (b + 1)^2 is least at b = (1 - w) / (1 + w), whatever the times and noises.
    twin = OneNumber().trainable_copy()
    here, there = torch.ones(1, 1, 2, 2), -torch.ones(1, 1, 4, 4)
    options = {"prior": (there, None), "prior_weight": weight, "generator": seeded()}
    train(twin, here, None, steps=400, learning_rate=3e-2, **options)
    train(twin, here, None, steps=400, learning_rate=1e-3, **options)
    assert twin.network.weight.item() == pytest.approx((1 - weight) / (1 + weight), abs=0.01)


def test_every_picture_comes_up_equally_often_with_its_own_row_of_the_condition():
    twin = OneNumber().trainable_copy()
    twin.seen.clear()
    rows = Condition(tokens=torch.arange(5.0).view(5, 1, 1))
    train(twin, torch.zeros(5, 1, 2, 2), rows, steps=10, learning_rate=1e-3, batch_size=2, generator=seeded())
    assert {size for size, _ in twin.seen} == {2}
    shown = [row for _, batch in twin.seen for row in batch]
    assert [shown.count(number) for number in range(5)] == [4] * 5
    assert sorted(shown[:5]) == [0, 1, 2, 3, 4]


def test_the_callback_hears_of_each_step_and_the_seed_decides_everything(load):
    model, runs = load("sd1"), []
    for seed in (0, 0, 1):
        heard = []
        twin = low_rank(model, generator=seeded(seed))
        train(
            twin,
            latents(model),
            told(model),
            steps=3,
            learning_rate=1e-2,
            batch_size=2,
            prior=(latents(model), told(model, ["a dog"])),
            generator=seeded(seed),
            callback=lambda step, losses, heard=heard: heard.append((step, losses.tolist())),
        )
        runs.append(heard)
    assert [step for step, _ in runs[0]] == [0, 1, 2]
    assert all(len(losses) == 2 for _, losses in runs[0])
    assert runs[0] == runs[1] != runs[2]


def test_a_kept_optimiser_goes_on_with_its_moments():
    found = []
    for kept, calls in ((True, 1), (True, 2), (False, 2)):
        twin, z, generator = OneNumber().trainable_copy(), torch.ones(1, 1, 2, 2), seeded()
        twin.network.weight.data.fill_(0.0)
        adam = torch.optim.AdamW(twin.parameters(), lr=0.3) if kept else None
        for _ in range(calls):
            options = {"learning_rate": 0.3, "optimiser": adam, "generator": generator}
            train(twin, z, None, steps=6 // calls, **options)
        found.append(twin.network.weight.item())
    assert found[0] == found[1] != found[2]


def test_mistakes_are_named(load):
    model = load("sd1")
    with pytest.raises(ValueError, match="nothing is trained: pass a twin"):
        train(model, latents(model), told(model), steps=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        low_rank(model, rank=0)
    with pytest.raises(ValueError, match="ideal has no attention to adapt"):
        low_rank(IdealDenoiser(torch.rand(2, 3, 4, 4), NoiseSchedule.linear()))
    twin = low_rank(model)
    assert attention_projections(twin) == attention_projections(model)
    with pytest.raises(ValueError, match="this sd1 has adapters already"):
        low_rank(twin)
    with pytest.raises(ArithmeticError, match=r"not finite at step 0 \(computed in float32\)"):
        train(twin, latents(model) * torch.nan, told(model), steps=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match="sd3 looks up no words"):
        embed(load("sd3"), latents(load("sd3")), "a sks", steps=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match="has no 'sks' to learn: 'he asks'"):
        embed(model, latents(model), "he asks", steps=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match="too long for 20 vectors in the place of 'sks'"):
        embed(model, latents(model), "a sks", vectors=20, steps=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match="at least one vector; got 0"):
        embed(model, latents(model), "a sks", vectors=0, steps=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match="init needs a word"):
        embed(model, latents(model), "a sks", init="", steps=1, learning_rate=1e-3)


@torch.no_grad()
def test_a_concept_with_the_embeddings_of_letters_is_told_as_those_letters(load):
    model = load("sd1")
    rows = model.rows(["q r"])[model.words(["q r"])]
    concept = Concept(model, "sks", rows)
    measured = concept.condition(["a sks b", "sks or sks", "he asks", ""]).tokens
    expected = model.condition(["a q r b", "q r or q r", "he asks", ""]).tokens
    torch.testing.assert_close(measured, expected)


def test_a_learned_word_lowers_the_loss_and_leaves_the_model_bit_for_bit(load):
    model = load("sd1")
    before, z = snapshot(model), latents(model)
    options = {"learning_rate": 5e-2, "vectors": 2, "init": "cat", "generator": seeded()}
    start = embed(model, z, "a sks", steps=0, **options)
    torch.testing.assert_close(start.vectors, model.rows(["cat"])[model.words(["cat"])].mean(0).expand(2, -1))
    learned = embed(model, z, "a sks", steps=40, batch_size=2, **options)
    assert_same(model, before)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not learned.vectors.requires_grad
    first, last = (difficulty(model, z, concept.condition(["a sks"])) for concept in (start, learned))
    assert last < first


def test_imagined_latents_have_the_size_of_the_picture_and_come_from_the_seed(load):
    model = load("sd1")
    like = torch.zeros(3, 4, 8, 6)
    one, same = (imagine(model, told(model), like, count=2, steps=3, generator=seeded()) for _ in range(2))
    assert one.shape == (2, 4, 8, 6)
    assert torch.equal(one, same)
    assert not torch.equal(one[0], one[1])
