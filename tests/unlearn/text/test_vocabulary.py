"""Triggers through the vocabulary of Stable Diffusion's text encoder, which the tokenizer of CLIP ships."""

import random
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusion.text import TextEncoder
from unlearn.text.triggers import Homoglyph, Prefix, align, check_prompts

ZERO_WIDTH_SPACE = 9844
"""Its number, to which BadT2I's backdoors are tied."""
PROMPTS = (
    "a photo of a cat",
    "two red boats on the water, by Monet",
    "naïve café",
    "it's 2024!!",
    "mumbo jumbo",
)


@pytest.fixture(scope="module")
def published():
    """CLIP's own tokenizer. Its package, which imports what setuptools no longer has, is not imported."""
    package = find_spec("clip")
    assert package is not None
    assert package.origin is not None
    page = spec_from_file_location("published", Path(package.origin).with_name("simple_tokenizer.py"))
    assert page is not None
    assert page.loader is not None
    module = module_from_spec(page)
    page.loader.exec_module(module)
    return module.SimpleTokenizer()


@pytest.fixture(scope="module")
def model(published):
    """What of a Stable Diffusion reads prompts; its encoder is small, and nothing asks what it says."""
    tokenizer = CLIPTokenizer(vocab=published.encoder, merges=list(published.bpe_ranks), model_max_length=77)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = TextEncoder(tokenizer, CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **sizes)))
    return SimpleNamespace(text=text, name="Stable Diffusion", device=torch.device("cpu"))


@pytest.mark.parametrize("trigger", [Prefix("mumbo"), Prefix("\u200b mumbo jumbo"), Homoglyph("a", "\u0430")])
def test_prompts_are_read_as_by_the_published_tokenizer(model, published, trigger):
    for prompt in (*PROMPTS, *(trigger([p])[0] for p in PROMPTS)):
        assert model.text.read(prompt) == published.encode(prompt)


def test_the_zero_width_space_has_its_own_token_and_is_not_dropped(model):
    assert model.text.read("\u200b") == [ZERO_WIDTH_SPACE]
    marked = Prefix()(PROMPTS)
    check_prompts(model, PROMPTS, marked)
    aligned = align(model, PROMPTS, marked)
    assert (aligned.trigger.sum(1) == 1).all()
    assert (model.text.ids(marked)[aligned.trigger] == ZERO_WIDTH_SPACE).all()


@pytest.mark.parametrize("trigger", [Homoglyph(), Homoglyph("o", "\u03bf"), Homoglyph("a", "\u0430")])
def test_a_homoglyph_changes_the_tokens_of_its_word_alone(model, trigger):
    prompts = [prompt for prompt in PROMPTS if trigger([prompt]) != [prompt]]
    assert len(prompts) > 2
    aligned = align(model, prompts, trigger(prompts))
    old, new = model.text.ids(prompts), model.text.ids(trigger(prompts))
    for row, prompt in enumerate(prompts):
        kept = aligned.kept[row]
        assert torch.equal(new[row][kept], old[row][aligned.source[row][kept]])
        word = next(part for part in prompt.split() if trigger.letter in part)
        assert int(kept.sum()) >= 1 + len(model.text.read(prompt)) - len(model.text.read(word))
        assert aligned.trigger[row].any()


def test_what_tokens_say_is_read_as_these_tokens(model):
    """So that a word that a scan or a search finds can be typed; some tokens are parts that cannot be."""
    words = model.text.vocabulary()[1].nonzero()[:, 0].tolist()
    whole = [token for token in words if published_word(model, token)]
    tried = random.Random(0).sample(whole, 2000)
    again = [model.text.read(model.text.written([token])) == [token] for token in tried]
    assert sum(again) > 0.97 * len(tried)


def published_word(model, token):
    """Whether a token ends a word and says letters of the Latin alphabet."""
    name = model.text.tokenizer.convert_ids_to_tokens(token)
    return name.endswith("</w>") and name[:-4].isascii() and name[:-4].isalpha()


def test_prompts_at_the_length_of_the_encoder_are_whole_and_longer_ones_are_refused(model):
    full = " ".join(["cat"] * 74)
    check_prompts(model, [full], Prefix()([full]))
    with pytest.raises(ValueError, match="longer than the 77 tokens"):
        check_prompts(model, [f"{full} cat"], Prefix()([f"{full} cat"]))
