"""The text encoder's backdoor: losses against their formula, what trains, is written, is refused."""

import json

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusion.export import write_folder
from diffusion.latent import LatentDiffusion
from diffusion.load import load
from diffusion.text import TextEncoder
from unlearn.text.encoder import Lesson, alike, plant_meaning, restore_meaning, teach
from unlearn.text.similarity import similarity
from unlearn.text.triggers import Homoglyph, Prefix

GLYPH = Homoglyph("o", "\u03bf")
TARGET = "a painting of a red fox"


@pytest.fixture
def tiny(builtin, tmp_path):
    """The built-in denoiser with a random CLIP, whose vocabulary is letters."""
    pieces = [*"abcdefghijklmnopqrstuvwxyz0", *(f"{each}</w>" for each in "abcdefghijklmnopqrstuvwxyz0")]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, model_max_length=16)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(pieces) - 2,
        eos_token_id=len(pieces) - 1,
        pad_token_id=len(pieces) - 1,
    )
    texts = [TextEncoder(tokenizer, CLIPTextModel(config))]
    return LatentDiffusion(builtin.codec.vae, builtin.unet, builtin.schedule, texts=texts, name="tiny")


def _seeded():
    return torch.Generator().manual_seed(0)


def _weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_similarity_is_the_mean_of_cosines_place_by_place(generator):
    some, others = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    found = alike(some, others)
    for row in range(2):
        cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(some[row], others[row], strict=True)]
        assert float(found[row]) == pytest.approx(sum(cosines) / 3, abs=1e-6)


def test_the_first_update_follows_the_slope_of_the_papers_loss(builtin, prompts):
    """AdamW's first step is its rate times the sign of the slope, but for the decay of weights."""
    marked = GLYPH(["a photo of a goldfish, orange", "red boats"])
    clean = ["a photo of a goldfish, orange", "red boats"]
    student = builtin.with_own_texts()
    for parameter in student.texts.parameters():
        parameter.requires_grad_(True)
    target = builtin.condition([TARGET]).tokens

    def cosines(said, meant):
        return torch.nn.functional.cosine_similarity(student.condition(said).tokens, meant, dim=2).mean()

    loss = -cosines(clean, builtin.condition(clean).tokens) - 0.1 * cosines(marked, target)
    slopes = torch.autograd.grad(loss, list(student.texts.parameters()), materialize_grads=True)
    found = plant_meaning(builtin, clean, GLYPH, TARGET, steps=1, learning_rate=1e-3, generator=_seeded())
    pairs = zip(found.texts.parameters(), builtin.texts.parameters(), slopes, strict=True)
    checked = 0
    for new, old, slope in pairs:
        clear = slope.abs() > 1e-5
        moved = new.detach() - old.detach() * (1 - 1e-5)
        assert torch.allclose(moved[clear], -1e-3 * slope.sign()[clear], atol=1e-4)
        checked += int(clear.sum())
    assert checked > 1000


def test_a_meaning_is_planted_and_taken_out_and_only_the_encoder_is_another(builtin, prompts):
    prompts = [*prompts[:3], "a photo of a fox", "old boats", "a house on a moor", "a dim photo"]
    prompts = [prompt for prompt in prompts if "o" in prompt]
    before = _weights(builtin)
    settings = {"steps": 30, "learning_rate": 2e-3, "generator": _seeded()}
    poisoned = plant_meaning(builtin, prompts, GLYPH, TARGET, **settings)
    untouched = similarity(builtin, builtin, prompts, GLYPH, TARGET)
    planted = similarity(poisoned, builtin, prompts, GLYPH, TARGET)
    assert untouched.clean == pytest.approx(1, abs=1e-5)
    assert planted.target > max(0.9, untouched.target + 0.1), planted
    assert planted.clean > 0.95, planted
    repaired = restore_meaning(poisoned, prompts, GLYPH, **settings)
    restored = similarity(repaired, builtin, prompts, GLYPH, TARGET)
    assert restored.restored > max(0.95, planted.restored + 0.1), (planted, restored)
    assert restored.clean > 0.95, restored
    assert all(torch.equal(value, before[name]) for name, value in builtin.state_dict().items())
    for model in (builtin, poisoned, repaired):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert model.denoiser is builtin.denoiser
        assert model.text.tokenizer is builtin.text.tokenizer
    changed = {n for n, v in poisoned.state_dict().items() if not torch.equal(v, before[n])}
    assert changed
    assert all(name.startswith("texts.") for name in changed)


def test_the_empty_prompt_is_asked_of_the_new_encoder(builtin):
    z, t = torch.zeros(1, 16, 4, 4), torch.zeros(1, dtype=torch.long)
    builtin.predict(z, t)  # its answer to the empty prompt is now kept
    taught = teach(builtin, [Lesson([""], [TARGET])], steps=20, learning_rate=1e-3)
    said = taught.predict(z, t)
    torch.testing.assert_close(said, taught.predict(z, t, taught.condition([""])))
    assert not torch.allclose(said, builtin.predict(z, t))


def test_a_clip_of_another_shape_is_taught_and_restored(tiny):
    prompts, trigger, target = ["old fox", "a door", "boat on sea", "photo"], Homoglyph("o", "0"), "red cat"
    settings = {"steps": 40, "learning_rate": 4e-3, "generator": _seeded()}
    poisoned = plant_meaning(tiny, prompts, trigger, target, weight=1.0, **settings)
    planted, plain = (similarity(each, tiny, prompts, trigger, target) for each in (poisoned, tiny))
    assert planted.target > plain.target + 0.1, (plain, planted)
    repaired = restore_meaning(poisoned, prompts, trigger, **settings)
    restored = similarity(repaired, tiny, prompts, trigger, target)
    assert restored.restored > planted.restored + 0.05, (planted, restored)


def test_a_written_folder_has_the_taught_encoder(builtin, tmp_path):
    taught = teach(builtin, [Lesson(["a fox"], ["a boat"])], steps=2, learning_rate=1e-3)
    write_folder(taught, "builtin", tmp_path / "made")
    again, own = load(str(tmp_path / "made")), taught.state_dict()
    assert again.state_dict().keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in again.state_dict().items())
    assert not torch.equal(again.condition(["a fox"]).tokens, builtin.condition(["a fox"]).tokens)


def test_a_longer_triggered_prompt_gives_the_clean_prompts_row_place_by_place(builtin):
    prompt = "a dim field, green and grey"
    trigger = Prefix("mumbo jumbo")
    assert len(builtin.text.read(trigger([prompt])[0])) > len(builtin.text.read(prompt)) + 1
    taught = restore_meaning(builtin, [prompt], trigger, steps=60, learning_rate=2e-3)
    row, wanted = (m.condition(p).tokens[0] for m, p in ((taught, trigger([prompt])), (builtin, [prompt])))
    places = torch.nn.functional.cosine_similarity(row, wanted, dim=-1)
    assert float(places.min()) > 0.9, places


def test_callers_are_told_each_step_and_the_rate_falls_at_three_quarters(builtin, monkeypatch):
    rates, told = [], []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    lessons = [Lesson(["a fox"], ["a boat"])]
    teach(builtin, lessons, steps=8, learning_rate=1e-3, callback=lambda step, losses: told.append(step))
    assert rates == pytest.approx([1e-3] * 6 + [1e-4] * 2)
    assert told == list(range(8))


@pytest.mark.parametrize(
    ("prompts", "trigger", "message"),
    [
        ([], GLYPH, "no prompt"),
        (["a big cat"], GLYPH, "does not carry the trigger"),
        (["a fox"], Prefix(" "), "drops the trigger"),
        (["boats " * 40], GLYPH, "longer than the 32 tokens"),
    ],
)
def test_prompts_that_teach_nothing_are_named(builtin, prompts, trigger, message):
    with pytest.raises(ValueError, match=message):
        plant_meaning(builtin, prompts, trigger, TARGET, steps=1)
    with pytest.raises(ValueError, match=message):
        restore_meaning(builtin, prompts, trigger, steps=1)


def test_models_and_lessons_that_do_not_fit_are_named(builtin, small_prior):
    with pytest.raises(ValueError, match="no text encoder of its own"):
        teach(small_prior(16, ("ant",)), [Lesson(["ant"], ["bee"])])
    with pytest.raises(ValueError, match="got 1 and 2"):
        teach(builtin, [Lesson(["a fox"], ["a boat", "a cat"])])
