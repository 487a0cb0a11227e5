"""Attacks on text against classifiers whose weakest word, luck or budget is known."""

import sys
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.adapters import MissingLibraryError
from attacks.text import (
    Queries,
    Words,
    character_edits,
    evaluate,
    greedy,
    neighbours,
    recipe,
    table,
    union,
)
from attacks.text.candidates import disguised, lengthened, shortened, swapped

TEXT = "Well, the film isn't good;  its slow, well-meant plot (and cast) was fine."


class BagOfWords:
    """Adds up weights of words; class 1 above zero. Notes what it was asked."""

    def __init__(self, weights):
        self.weights, self.asked = weights, []

    def __call__(self, texts):
        self.asked.append(list(texts))
        sums = torch.tensor([self.score(text) for text in texts], dtype=torch.float64)
        return torch.stack([torch.sigmoid(-sums), torch.sigmoid(sums)], 1)

    def score(self, text):
        return sum(self.weights.get(word, 0.0) for word in (Words.of(text).pieces[1::2]))


class Lucky:
    """Right with probability `p`, whatever it is asked."""

    def __init__(self, p, seed=0):
        self.p, self.generator, self.count = p, torch.Generator().manual_seed(seed), 0

    def __call__(self, texts):
        self.count += len(texts)
        right = torch.rand(len(texts), generator=self.generator) < self.p
        sure = 0.6 + 0.3 * torch.rand(len(texts), generator=self.generator)
        sure = torch.where(right, sure, 1 - sure)
        return torch.stack([1 - sure, sure], 1)


def test_a_text_comes_apart_and_together():
    words = Words.of(TEXT)
    assert str(words) == TEXT
    assert [words[i] for i in range(len(words))] == (
        [
            "Well",
            "the",
            "film",
            "isn't",
            "good",
            "its",
            "slow",
            "well-meant",
            "plot",
            "and",
            "cast",
            "was",
            "fine",
        ]
    )
    assert str(words.replaced(4, "bad")) == TEXT.replace("good", "bad")
    assert words.without(2) == "Well, the isn't good; its slow, well-meant plot (and cast) was fine."
    assert len(Words.of("...")) == 0


@given(st.text("ab1\u00e9'\u2019- .,\n_", max_size=30))
def test_any_text_survives_being_taken_apart(text):
    assert str(Words.of(text)) == text


def test_edits_are_one_letter_away():
    assert swapped("film") == ["flim"]
    assert shortened("film") == ["flm", "fim"]
    assert lengthened("ab") == ["a b"]
    assert lengthened("film") == ["f ilm", "fi lm", "fil m", "fiilm", "fillm"]
    assert disguised("bo") == ["b\u043e", "b0"]
    assert character_edits("a") == ["\u0430", "@"]
    assert "film" not in character_edits("film")
    assert len(set(character_edits("balloon"))) == len(character_edits("balloon"))


def test_neighbours_are_the_nearest_by_cosine():
    generator = torch.Generator().manual_seed(0)
    vocabulary, vectors = [f"w{i}" for i in range(30)], torch.randn(30, 4, generator=generator)
    source = neighbours(vocabulary, vectors, count=5, least=0.3)
    for place, word in enumerate(vocabulary):
        cosines = {
            other: float(torch.cosine_similarity(vectors[place], vectors[i], dim=0))
            for i, other in enumerate(vocabulary)
            if i != place
        }
        expected = sorted((other for other in cosines if cosines[other] >= 0.3), key=lambda o: -cosines[o])
        assert source(word) == expected[:5]
    assert source("W3") == [word.capitalize() for word in source("w3")]
    assert source("unknown") == []
    assert union(source, lambda word: ["x", *source(word)])("w3") == [*source("w3"), "x"]
    with pytest.raises(ValueError, match="one embedding per word"):
        neighbours(["a"], torch.zeros(2, 3))


@pytest.mark.parametrize("seed", range(6))
def test_one_substitution_in_a_bag_of_words_is_the_best_one(seed):
    """With the same candidates for every word the best single change is found by trying all."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"word{i}" for i in range(8)]
    weights = dict(zip(names, (torch.randn(8, generator=generator).abs() + 0.5).tolist(), strict=True))
    others = {f"other{i}": float(torch.randn(1, generator=generator)) - 1 for i in range(5)}
    classify = BagOfWords({**weights, **others, "much": 15.0})
    text = " ".join([*names, "much"])  # so sure that no single change fools it
    source = lambda word: [] if word == "much" else list(others)  # noqa: E731
    found = greedy(classify, text, 1, source, most_changed=1.5 / 9)
    every = [str(Words.of(text).replaced(place, other)) for place, other in product(range(8), others)]
    assert found.text == min(every, key=classify.score)
    assert not found.success
    assert len(found.changed) == 1


def test_a_text_that_can_be_fooled_is_and_only_by_allowed_words():
    classify = BagOfWords({"good": 3.0, "fine": 1.0, "poor": -1.0, "great": 1.5})
    source = {"good": ["great", "nice"], "fine": ["poor"]}
    found = greedy(classify, "a good and fine film", 1, lambda word: source.get(word, []), most_changed=0.4)
    assert found.success
    assert found.text == "a nice and poor film"
    assert found.changed == (1, 3)
    assert classify(["a nice and poor film"]).argmax(1) == 0
    kept = greedy(
        classify,
        "a good and fine film",
        1,
        lambda word: source.get(word, []),
        most_changed=0.4,
        constraint=lambda original, text: "poor" not in text,
    )
    assert kept.text == "a nice and fine film"
    assert not kept.success


def test_a_wrong_answer_at_the_start_ends_the_attack():
    classify = BagOfWords({"bad": -1.0})
    found = greedy(classify, "a bad film it was", 1, character_edits)
    assert (found.clean, found.success, found.survived, found.queries) == (False, False, False, 1)
    assert found.text == "a bad film it was"


@given(
    st.lists(st.sampled_from(["aa", "bb", "cc", "dd", "ee", "ff"]), max_size=12),
    st.floats(0, 1),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_budget_and_share_of_words_are_kept(words, share, per_word, draws, seed):
    draws, text, asked = min(draws, per_word), " ".join(words), []
    classify = Lucky(0.8, seed)

    def noted(texts):
        asked.extend(texts)
        return classify(texts)

    found = greedy(
        noted,
        text,
        1,
        lambda word: ["x", "y z", "w"],
        most_changed=share,
        queries_per_word=per_word,
        draws=draws,
    )
    assert found.queries == len(asked) <= per_word * max(len(words), 1)
    assert len(found.changed) == len(set(found.changed)) <= share * len(words) + 1e-6
    # "y z" is one change: take it back before counting words
    final = found.text.replace("y z", "y").split()
    assert sum(before != after for before, after in zip(words, final, strict=True)) == len(found.changed)
    assert len(asked) % draws == 0


@given(st.integers(1, 4), st.integers(1, 30), st.booleans())
def test_answers_are_averaged_and_counted(draws, texts, any_answer):
    answers = torch.rand(draws * texts, 3, generator=torch.Generator().manual_seed(texts)).softmax(1)
    queries = Queries(lambda asked: answers, 2, budget=200, draws=draws, any_answer=any_answer)
    scores, fooled = queries.ask(["text"] * texts)
    for number in range(texts):
        own = answers[number * draws : (number + 1) * draws]
        assert scores[number] == pytest.approx(float(own[:, 2].mean()), rel=1e-5)
        wrong = [int(row.argmax()) != 2 for row in own]
        assert fooled[number] == (any(wrong) if any_answer else int(own.mean(0).argmax()) != 2)
    assert queries.spent == draws * texts


def test_the_null_row_is_pure_luck_and_equals_an_attack_that_cannot_matter():
    """Answers do not depend on the text: surviving means that all that count were right, p to their power."""
    p, texts = 0.98, 600
    attack = partial(greedy, candidates=lambda word: ["x", "y"] if word != "the" else [], most_changed=1.0)
    (report,) = evaluate(Lucky(p), ["the aa bb the cc dd"] * texts, [1] * texts, {"idle": attack}, answers=4)
    attacked, null = report.rows()
    # the first answer, and two candidates for each of four words; answers about deletions decide nothing
    expected = p ** (1 + 4 * 2)
    error = (expected * (1 - expected) / texts) ** 0.5
    for row in (attacked, null):
        assert row.under_attack == pytest.approx(expected, abs=3.5 * error)
        assert row.clean == pytest.approx(p, abs=3.5 * (p * (1 - p) / texts) ** 0.5)
        assert row.fresh == pytest.approx(p, abs=3.5 * (p * (1 - p) / texts / 4) ** 0.5)
    assert null.changed == 0
    assert all(one.text == one.original for one in report.null)


def test_any_of_many_answers_is_luckier_than_their_average():
    attack = partial(greedy, candidates=lambda word: ["x"], most_changed=1.0, draws=5)
    rows = {}
    for name, given_any in {"any": True, "average": False}.items():
        (report,) = evaluate(
            Lucky(0.9), ["aa bb cc dd"] * 60, [1] * 60, {name: partial(attack, any_answer=given_any)}
        )
        rows[name] = report.rows()[1].under_attack
    # 0.9 ** 25 = 0.07 against a majority of five, mostly
    assert rows["any"] < 0.3 < 0.7 < rows["average"], rows


def test_a_deterministic_classifier_has_a_null_row_without_any_success():
    classify = BagOfWords({"good": 2.0, "bad": -2.0})
    texts = ["the film was good to me", "a bad film it was", "the good plot was very bad bad"]
    attack = partial(greedy, candidates=character_edits)
    (report,) = evaluate(classify, texts, [1, 0, 1], {"letters": attack})
    attacked, null = report.rows()
    assert null.under_attack == null.clean == null.fresh == pytest.approx(2 / 3)
    assert null.success_rate == 0
    # "good" and "bad" become unknown words and the sum is zero, which is no longer class 1 but still class 0
    assert attacked.under_attack == pytest.approx(1 / 3)
    assert attacked.success_rate == pytest.approx(1 / 2)
    assert attacked.fresh == pytest.approx(1 / 3)
    assert "| letters, null | 3 | 66.7 | 66.7 | 0.0 |" in table([report])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most_changed": 1.2}, "0 to 1"),
        ({"draws": 0}, "at least 1"),
        ({"draws": 60, "queries_per_word": 10}, "60 of 50"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        greedy(Lucky(1.0), "one two three four five", 1, character_edits, **options)


def test_wrong_answers_are_explained():
    with pytest.raises(ValueError, match="one row per text"):
        greedy(lambda texts: torch.ones(1), "one two", 1, character_edits)
    with pytest.raises(ValueError, match="the label is 4"):
        greedy(Lucky(1.0), "one two", 4, character_edits)
    with pytest.raises(ValueError, match="got 1 texts, 2 labels"):
        evaluate(Lucky(1.0), ["one"], [1, 0], {})


def test_textattack_is_asked_for_by_name(monkeypatch):
    for name in ("textattack", "textattack.attack_recipes"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibraryError, match="pip install textattack"):
        recipe("TextFoolerJin2019")


def test_a_textattack_recipe_runs_on_a_callable(monkeypatch):
    """Only where TextAttack is installed: a greedy search that swaps letters, without downloads."""
    pytest.importorskip("textattack")
    import textattack
    from textattack.goal_functions import UntargetedClassification
    from textattack.search_methods import GreedyWordSwapWIR
    from textattack.transformations import WordSwapNeighboringCharacterSwap

    class Swaps:
        @staticmethod
        def build(model):
            swap = WordSwapNeighboringCharacterSwap(random_one=False)
            search = GreedyWordSwapWIR(wir_method="delete")
            return textattack.Attack(UntargetedClassification(model), [], swap, search)

    monkeypatch.setattr(textattack.attack_recipes, "Swaps", Swaps, raising=False)
    classify = BagOfWords({"good": 2.0, "always": -0.5})
    found = recipe("Swaps")(classify, "always good to see this film", 1)
    assert found.success
    assert found.queries == sum(map(len, classify.asked))
    with pytest.raises(ValueError, match="no 'Nope'"):
        recipe("Nope")
