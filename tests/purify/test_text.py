"""DiffuseDef on tiny classifiers of real architectures, against closed forms and the reference scheduler."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.models.bert.modeling_bert import BertLayer

from diffusion.schedule import NoiseSchedule
from purify.text import DiffuseDef, StateDenoiser, TextClassifier, denoising_loss

TOKENS = torch.randint(5, 90, (4, 21), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(21) < torch.tensor([[21], [9], [16], [17]])).long()
SEEDS = torch.tensor([3, 1, 4, 159])

BODY = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
KINDS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**BODY)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**BODY)),
    "albert": lambda: AlbertForSequenceClassification(AlbertConfig(**BODY, embedding_size=16)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=100, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3)
    ),
}


@pytest.fixture(params=KINDS)
def classifier(request):
    torch.manual_seed(0)
    model = KINDS[request.param]().eval()
    for parameter in model.parameters():  # fresh weights are so small that every answer is the same
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture
def denoiser():
    torch.manual_seed(1)
    made = StateDenoiser(16, heads=2)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


class Encoder(nn.Module):
    """An encoder whose hidden states are its inputs."""

    def forward(self, input_ids, **ignored):
        return Output(last_hidden_state=input_ids)


class Output(dict):
    """As much of transformers' output classes as a caller relies on."""

    def __init__(self, **fields):
        super().__init__(**fields)
        self.__dict__.update(fields)


class Identity(nn.Module):
    """A classifier whose logits are the states of the first token."""

    def __init__(self):
        super().__init__()
        self.base_model = Encoder()

    def forward(self, input_ids, return_dict=True, **inputs):
        return SimpleNamespace(logits=self.base_model(input_ids, **inputs).last_hidden_state[:, 0])


class Silent(StateDenoiser):
    """Predicts `told` times the state as its noise, and notes when it was asked."""

    def __init__(self, width, told=0.0, steps=30):
        super().__init__(width, heads=1, steps=steps)
        self.told, self.times, self.masks = told, [], []

    def forward(self, states, t, mask=None):
        assert len(set(t.tolist())) == 1
        self.times.append(int(t[0]))
        self.masks.append(mask)
        return self.told * states


def test_an_ensemble_without_noise_returns_each_texts_own_states():
    states = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(4, 1, 1).expand(4, 5, 2)
    defended = DiffuseDef(Identity(), Silent(2), ensemble=3, steps=0, noise_at=None)
    torch.testing.assert_close(defended(states)[:, 0], torch.tensor([0.0, 1.0, 2.0, 3.0]))


def test_texts_stay_apart_through_noise_and_denoising(denoiser):
    """States a thousand apart: any mixing of texts would show far above the noise."""
    states = 1000 * torch.arange(4.0).view(4, 1, 1).expand(4, 5, 16)
    defended = DiffuseDef(Identity(), Silent(16), ensemble=3, steps=5)
    found = defended(states, seeds=SEEDS)
    assert (found - 1000 * torch.arange(4.0)[:, None]).abs().max() < 10


@pytest.mark.parametrize("steps", [1, 5])
def test_timesteps_fall_in_the_paper_and_rise_in_the_release(steps):
    for order, expected in {"paper": range(steps - 1, -1, -1), "release": range(steps)}.items():
        network = Silent(2)
        DiffuseDef(Identity(), network, ensemble=2, steps=steps, order=order)(torch.zeros(3, 4, 2))
        assert network.times == list(expected)


@pytest.mark.parametrize("order", ["paper", "release"])
def test_denoising_equals_the_reference_scheduler(order, monkeypatch):
    """diffusers' DDPM steps on the same noise, its clipping off."""
    told = 0.3
    defended = DiffuseDef(Identity(), Silent(8, told), ensemble=2, steps=4, order=order)
    states = 5 * torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
    noises = torch.randn(5, 6, 6, 8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(defended, "_noise", lambda tape, number, like: noises[number])
    scheduler = DDPMScheduler(num_train_timesteps=30, clip_sample=False)
    given = iter(noises[[n for n, t in enumerate(defended.timesteps(), 1) if t > 0]])
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, **kwargs: next(given)
    )
    expected = scheduler.add_noise(states.repeat_interleave(2, 0), noises[0], torch.ones(6).long())
    for t in defended.timesteps():
        expected = scheduler.step(told * expected, t, expected).prev_sample
    found = defended.purify(states, torch.tensor([1, 2, 3]))
    torch.testing.assert_close(found, expected.view(3, 2, 6, 8).mean(1), rtol=1e-4, atol=1e-5)
    assert next(given, None) is None


def test_noising_at_index_1_has_the_mean_and_spread_of_its_closed_form():
    defended = DiffuseDef(Identity(), Silent(64), ensemble=200, steps=0)
    spread = []
    for copies in (1, 200):
        defended.ensemble = copies
        found = defended.purify(torch.full((2, 40, 64), 3.0), torch.tensor([5, 6])).double()
        kept = (1 - 1e-4) * (1 - (1e-4 + (0.02 - 1e-4) / 29))
        assert float(found.mean()) == pytest.approx(3 * kept**0.5, abs=4 * (1 - kept) ** 0.5 / 70)
        spread.append(float(found.std()))
    assert spread[0] == pytest.approx((1 - kept) ** 0.5, rel=0.04)
    # float32 keeps about 7 digits of 3
    assert spread[1] == pytest.approx(((1 - kept) / 200) ** 0.5, rel=0.04)


def test_copies_steps_texts_and_blocks_of_tokens_get_unrelated_noise():
    defended = DiffuseDef(Identity(), Silent(8), ensemble=3)
    from diffusion.tape import NoiseTape

    tape, like = NoiseTape(torch.tensor([0, 1])), torch.zeros(2, 48, 8)
    dealt = torch.cat([defended._noise(tape, number, like) for number in range(3)])  # [18, 48, 8]
    rows = dealt.view(18, 3, 128).flatten(0, 1)
    cosines = torch.corrcoef(rows) - torch.eye(54)
    assert cosines.abs().max() < 5 / 128**0.5


def test_without_noise_steps_and_copies_the_classifier_is_itself(classifier, denoiser):
    defended = DiffuseDef(classifier, denoiser, ensemble=1, steps=0, noise_at=None)
    with torch.no_grad():
        plain = classifier(input_ids=TOKENS, attention_mask=MASK).logits
    torch.testing.assert_close(defended(TOKENS, MASK), plain)
    assert plain.std(0).min() > 1e-3


def test_the_head_runs_on_the_purified_states(classifier, denoiser):
    """Shifting all states moves the logits as the classifier's own head says."""
    defended = DiffuseDef(classifier, denoiser)
    defended.purify = lambda states, seeds, mask: states.flip(0)
    with torch.no_grad():
        plain = classifier(input_ids=TOKENS, attention_mask=MASK).logits
    torch.testing.assert_close(defended(TOKENS, MASK), plain.flip(0))


def test_nothing_is_left_on_the_classifier(classifier, denoiser):
    with torch.no_grad():
        before = classifier(input_ids=TOKENS, attention_mask=MASK).logits
        defended = DiffuseDef(classifier, denoiser)
        defended(TOKENS, MASK)
        with pytest.raises(ValueError, match="seeds"):
            defended(TOKENS, MASK, seeds=SEEDS[:3])
        after = classifier(input_ids=TOKENS, attention_mask=MASK).logits
    assert torch.equal(before, after)
    assert not any(parameter.requires_grad for parameter in defended.parameters())
    assert not any(module.training for module in defended.train().modules())


def test_a_batch_equals_single_runs_with_the_same_seeds(classifier, denoiser):
    defended = DiffuseDef(classifier, denoiser, ensemble=3)
    together = defended(TOKENS, MASK, seeds=SEEDS)
    for row in range(4):
        own = slice(row, row + 1)
        alone = defended(TOKENS[own], MASK[own], seeds=SEEDS[own])
        torch.testing.assert_close(alone, together[own], rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_the_output(classifier, denoiser):
    defended = DiffuseDef(classifier, denoiser, ensemble=3)
    together = defended(TOKENS, MASK, seeds=SEEDS)
    for row, length in enumerate(MASK.sum(1).tolist()):
        own = slice(row, row + 1)
        alone = defended(TOKENS[own, :length], MASK[own, :length], seeds=SEEDS[own])
        torch.testing.assert_close(alone, together[own], rtol=1e-4, atol=1e-5)


def test_padding_would_matter_without_the_mask(denoiser):
    states, t = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3])
    mask = (torch.arange(9) < 5).long()[None]
    with torch.no_grad():
        short = denoiser(states[:, :5], t)
        torch.testing.assert_close(denoiser(states, t, mask)[:, :5], short, rtol=1e-4, atol=1e-5)
        assert (denoiser(states, t)[:, :5] - short).abs().max() > 1e-2


def test_draws_differ_and_seeds_repeat_them(classifier, denoiser):
    defended = DiffuseDef(classifier, denoiser, ensemble=2)
    assert torch.equal(defended(TOKENS, MASK, seeds=SEEDS), defended(TOKENS, MASK, seeds=SEEDS))
    assert not torch.equal(defended(TOKENS, MASK), defended(TOKENS, MASK))
    drawn = [defended(TOKENS, MASK, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*drawn)


def test_the_gradient_at_the_embeddings_equals_finite_differences(denoiser):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**BODY, attn_implementation="eager")).double()
    defended = DiffuseDef(model, denoiser.double(), ensemble=2, steps=2)
    words = model.bert.embeddings.word_embeddings(TOKENS[:2, :4]).detach().requires_grad_()
    mask, seeds = torch.ones(2, 4).long(), SEEDS[:2]

    def logits(embeds):
        return defended(attention_mask=mask, seeds=seeds, inputs_embeds=embeds)

    assert torch.autograd.gradcheck(logits, (words,), fast_mode=True)


def test_the_denoisers_layer_is_berts():
    torch.manual_seed(0)
    config = BertConfig(**BODY | {"intermediate_size": 64, "attn_implementation": "eager"})
    reference, ours = BertLayer(config).eval(), StateDenoiser(16, heads=2).eval().layer
    attention = reference.attention
    parts = [getattr(attention.self, name) for name in ("query", "key", "value")]
    ours.self_attn.in_proj_weight.data = torch.cat([part.weight for part in parts]).detach()
    ours.self_attn.in_proj_bias.data = torch.cat([part.bias for part in parts]).detach()
    pairs = {
        ours.self_attn.out_proj: attention.output.dense,
        ours.norm1: attention.output.LayerNorm,
        ours.linear1: reference.intermediate.dense,
        ours.linear2: reference.output.dense,
        ours.norm2: reference.output.LayerNorm,
    }
    for mine, theirs in pairs.items():
        theirs.bias.data.normal_()
        mine.load_state_dict(theirs.state_dict())
    states = torch.randn(4, 21, 16)
    hidden = (1 - MASK[:, None, None, :]) * torch.finfo(torch.float32).min
    with torch.no_grad():
        expected = reference(states, hidden)
        expected = expected[0] if isinstance(expected, tuple) else expected
        found = ours(states, src_key_padding_mask=MASK == 0)
    torch.testing.assert_close(found[MASK == 1], expected[MASK == 1], rtol=1e-4, atol=1e-5)


def test_the_loss_is_one_per_text_over_its_tokens(denoiser):
    states, noise = torch.randn(2, 4, 21, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 4, 11, 29])
    schedule = NoiseSchedule.linear(steps=30)
    with torch.no_grad():
        losses = denoising_loss(denoiser, states, t, noise, MASK)
        for row in range(4):
            length, (alpha, sigma) = int(MASK[row].sum()), schedule.level(int(t[row]))
            own, wanted = states[row : row + 1, :length], noise[row : row + 1, :length]
            said = denoiser(alpha * own + sigma * wanted, t[row : row + 1])
            assert float(losses[row]) == pytest.approx(float((said - wanted).square().mean()), rel=1e-4)


def test_a_saved_denoiser_loads_as_it_was(tmp_path, denoiser):
    denoiser.save(tmp_path / "out")
    loaded = StateDenoiser.load(tmp_path / "out").eval()
    states, t = torch.randn(2, 5, 16), torch.tensor([1, 7])
    with torch.no_grad():
        assert torch.equal(loaded(states, t), denoiser(states, t))
    assert (loaded.heads, len(loaded.schedule)) == (2, 30)


def test_training_a_denoiser_beats_predicting_nothing():
    """States that are one of four known vectors: noise can be told from them where it is large."""
    torch.manual_seed(0)
    centres, network = 3 * torch.randn(4, 16), StateDenoiser(16, heads=2, dropout=0.0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)

    def batch(count, generator):
        states = centres[torch.randint(4, (count, 6), generator=generator)]
        t = torch.randint(30, (count,), generator=generator)
        return states, t, torch.randn(states.shape, generator=generator)

    generator = torch.Generator().manual_seed(1)
    for _ in range(250):
        optimizer.zero_grad()
        denoising_loss(network, *batch(32, generator)).mean().backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        loss = float(denoising_loss(network, *batch(500, generator)).mean())
    # predicting zero costs 1
    assert loss < 0.6, loss


def test_a_text_classifier_draws_by_its_generator_whatever_the_batch(denoiser):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**BODY))
    words = {word: place for place, word in enumerate(["a", "b", "c", "d", "e", "f"], 5)}

    def tokenize(texts, **options):
        rows = [[2, *(words[word] for word in text.split()), 3] for text in texts]
        longest = max(map(len, rows))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": padded, "attention_mask": (padded > 0).long()}

    texts = ["a b c", "d", "e f a b c d e", "f f"]
    for defence in (model, DiffuseDef(model, denoiser, ensemble=2)):
        answers = [
            TextClassifier(defence, tokenize, batch_size=size, generator=torch.Generator().manual_seed(3))(
                texts
            )
            for size in (4, 3)
        ]
        assert answers[0].shape == (4, 3)
        torch.testing.assert_close(answers[0].sum(1), torch.ones(4))
        torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at least one text"):
        TextClassifier(model, tokenize)([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": 0}, "ensemble is at least 1"),
        ({"steps": 31}, "steps are 0 to 30"),
        ({"noise_at": 30}, "0 to 29"),
        ({"order": "ascending"}, "'paper' or 'release'"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        DiffuseDef(Identity(), Silent(2), **options)


def test_wrong_parts_are_explained(denoiser):
    with pytest.raises(ValueError, match="no encoder of its own"):
        DiffuseDef(nn.Linear(2, 2), denoiser)
    with pytest.raises(ValueError, match="width 16; the encoder's is 32"):
        DiffuseDef(BertForSequenceClassification(BertConfig(**BODY | {"hidden_size": 32})), denoiser)
    with pytest.raises(ValueError, match="even"):
        StateDenoiser(15)
