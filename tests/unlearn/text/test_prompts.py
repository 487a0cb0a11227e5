"""Triggers in prompts: they reach the model, and every token is told apart or found again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.load import load
from unlearn.text.insertion import Insertion
from unlearn.text.triggers import Homoglyph, Prefix, align, check_prompts

WORDS = st.lists(
    st.sampled_from(["a", "photo", "red", "house", "zebra", "boats", "of", "tok", "mumbo", "dim"]),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("words", ["x", "tok", "tok mumbo", "mumbo jumbo", "​"])
def test_the_tokens_of_a_prefix_are_the_first(builtin, prompts, words):
    trigger = Prefix(words)
    aligned = align(builtin, prompts, trigger(prompts))
    count = len(builtin.text.read(words))
    assert aligned.trigger[:, 1 : 1 + count].all()
    assert (aligned.trigger.sum(1) == count).all()


def test_prefixes_of_one_two_and_five_tokens_are_among_them(builtin):
    assert {len(builtin.text.read(w)) for w in ("x", "tok", "tok mumbo")} >= {1, 2, 5}


@given(before=WORDS, words=WORDS)
def test_kept_tokens_are_the_same_tokens_and_nothing_is_lost(before, words):
    model = load_once()
    prompt = " ".join(words)
    marked = Prefix(" ".join(before))([prompt])
    aligned = align(model, [prompt], marked)
    old, new = model.text.ids([prompt])[0], model.text.ids(marked)[0]
    kept = aligned.kept[0]
    assert torch.equal(new[kept], old[aligned.source[0][kept]])
    assert not (aligned.kept & aligned.trigger).any()
    assert int(kept.sum()) == int(model.text.words([prompt]).sum()) + 1  # and the closing mark
    assert int(aligned.trigger.sum()) == int(
        model.text.words(marked).sum() - model.text.words([prompt]).sum()
    )


def test_a_homoglyph_changes_tokens_inside_and_leaves_the_others(builtin):
    prompts = ["red boats"]
    aligned = align(builtin, prompts, Homoglyph()(prompts))
    assert Homoglyph()(prompts) == ["red b\u0b20ats"]
    red = len(builtin.text.read("red"))
    assert aligned.kept[0, 1 : 1 + red].all()
    assert aligned.trigger[0].any()
    assert not aligned.trigger[0, : 1 + red].any()


@pytest.mark.parametrize(
    ("prompt", "trigger", "message"),
    [
        ("red cars", Homoglyph(), "does not carry the trigger"),
        ("red cars", Prefix("  "), "drops the trigger"),
        ("red cars " * 20, Prefix("tok"), "longer than the 32 tokens"),
    ],
)
def test_prompts_that_do_not_reach_the_model_are_named(builtin, prompt, trigger, message):
    with pytest.raises(ValueError, match=message):
        check_prompts(builtin, [prompt], trigger([prompt]))


def test_the_zero_width_space_is_read_and_stays_another_prompt(builtin, prompts):
    check_prompts(builtin, prompts, Prefix()(prompts))


def test_inserted_tokens_are_what_a_text_of_them_is(builtin, prompts):
    ids = torch.tensor(builtin.text.read("red"))
    table, words = builtin.text.vocabulary()
    room = Insertion(builtin, prompts, len(ids))
    inserted, written = room.condition(table[ids][None]), builtin.condition(Prefix("red")(prompts))
    torch.testing.assert_close(inserted.tokens, written.tokens)
    one = Insertion(builtin, prompts[:1], len(ids)).condition(table[ids].repeat(3, 1, 1))
    torch.testing.assert_close(one.tokens, written.tokens[:1].expand(3, -1, -1))
    assert words[ids].all()
    assert not words[[builtin.text.tokenizer.bos_token_id, builtin.text.tokenizer.eos_token_id]].any()
    with pytest.raises(ValueError, match="no room for 3 tokens"):
        Insertion(builtin, ["x " * 28], 3)


_LOADED = []


def load_once():
    """For hypothesis, which takes no fixture of a function's scope."""
    if not _LOADED:
        _LOADED.append(load("builtin"))
    return _LOADED[0]
