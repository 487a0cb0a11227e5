"""The scan: what it measures, and that a word that acts comes first."""

import pytest
import torch

from unlearn.text.insertion import Insertion
from unlearn.text.scan import DivergenceScan


def test_a_divergence_is_the_mean_squared_change_of_the_prediction(builtin, prompts):
    scan = DivergenceScan(builtin, prompts, side=64, noises=2, sampling_steps=2, generator=_seeded())
    found = scan._divergences([(315,), (500,), (900,)])
    assert found.shape == (3, 4)
    table = builtin.text.vocabulary()[0]
    with torch.no_grad():
        told = Insertion(builtin, prompts[1:2], 1).condition(table[torch.tensor([[500]])])
        plain = builtin.condition(prompts[1:2])
        values = [
            (builtin.predict(z[None], t[None], told) - builtin.predict(z[None], t[None], plain))
            .square()
            .mean()
            for z, t in zip(scan._z_t[1], scan._t[1], strict=True)
        ]
    assert float(found[1, 1]) == pytest.approx(float(torch.stack(values).mean()), rel=1e-3)


def test_the_tokens_that_move_the_prediction_most_are_the_suspects(builtin, prompts, small_vocabulary):
    small_vocabulary(600, 640)
    scan = DivergenceScan(builtin, prompts, side=64, noises=2, sampling_steps=2, generator=_seeded())
    suspects = scan((), length=2, width=3, first=2, top=8)
    alone = [(token,) for token in range(600, 640)]
    rough = scan._divergences(alone, prompts=2).mean(1)
    three = [alone[int(place)] for place in rough.topk(3).indices]
    exact = dict(zip(three, scan._divergences(three).mean(1).tolist(), strict=True))
    usual = float(rough.median())
    assert suspects == sorted(suspects, key=lambda each: -each.divergence)
    assert {len(each.tokens) for each in suspects} <= {1, 2}
    for each in suspects:
        assert each.readable == (builtin.text.read(each.words) == list(each.tokens))
        if len(each.tokens) == 1:
            assert each.divergence == pytest.approx(exact[each.tokens] / usual, rel=1e-3)
        else:
            assert set(each.tokens) <= {token for row in three for token in row}
    best = max(three, key=lambda row: exact[row])
    assert suspects[0].divergence >= exact[best] / usual * 0.999
    assert suspects[0].words


def test_strings_are_tried_whole_and_are_all_there(builtin, prompts, small_vocabulary):
    small_vocabulary(600, 604)
    scan = DivergenceScan(builtin, prompts, side=64, noises=2, sampling_steps=2, generator=_seeded())
    strings = ("mumbo", "\u200b", "", " ".join(["mumbo"] * 5))
    suspects = scan(strings, length=1, width=4, top=1)
    assert suspects == sorted(suspects, key=lambda each: -each.divergence)
    found = {each.words: each for each in suspects if each.words in strings}
    assert set(found) == {"mumbo", "\u200b"}  # nothing is left of the third, and the last is too long
    assert len(suspects) == 3
    usual = float(
        scan._divergences([(token,) for token in range(600, 604)], prompts=2, noises=2).mean(1).median()
    )
    for words, each in found.items():
        assert each.tokens == tuple(builtin.text.read(words))
        moved = scan._divergences([each.tokens]).mean()
        assert each.divergence == pytest.approx(float(moved) / usual, rel=1e-3)


def test_strings_that_the_prompts_have_no_room_for_are_left_out(builtin, small_vocabulary):
    small_vocabulary(600, 602)
    long = " ".join(["red"] * (builtin.text.length - 5))  # room for three tokens between the marks
    assert builtin.text.fit([f"x x x {long}", f"x x x x {long}"]) == [True, False]
    scan = DivergenceScan(
        builtin, [long, "red boats"], side=64, noises=1, sampling_steps=1, generator=_seeded()
    )
    suspects = scan(("mumbo", "mumbo jumbo"), length=1)
    assert {"mumbo"} == {each.words for each in suspects} & {"mumbo", "mumbo jumbo"}


def test_a_scan_of_one_prompt_is_refused(builtin):
    with pytest.raises(ValueError, match="two or more"):
        DivergenceScan(builtin, ["a house"], side=64)


def _seeded():
    return torch.Generator().manual_seed(0)
