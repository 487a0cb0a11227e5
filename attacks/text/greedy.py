"""Greedy search over words: the most important first, each replaced by what hurts most."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from attacks.text.candidates import Candidates
from attacks.text.queries import Classify, Queries
from attacks.text.words import Words

Constraint = Callable[[str, str], bool]
"""Whether a changed text, the second, may stand for the original."""


@dataclass(frozen=True)
class Result:
    """What became of one text."""

    original: str
    text: str
    """The changed text: one that fooled the classifier, or else the best one found."""
    label: int
    clean: bool
    """Whether the answer to the original was right; if not, nothing was tried."""
    success: bool
    queries: int
    words: int
    changed: tuple[int, ...]
    """Places of the words that were changed."""

    @property
    def survived(self) -> bool:
        """Whether the classifier was right before and after."""
        return self.clean and not self.success


def greedy(
    classify: Classify,
    text: str,
    label: int,
    candidates: Candidates,
    *,
    most_changed: float = 0.3,
    queries_per_word: int = 50,
    draws: int = 1,
    any_answer: bool = False,
    constraint: Constraint | None = None,
) -> Result:
    """Change words of a text until the classifier is wrong.

    Words are ranked by how far the label's probability falls when they are deleted; one after the other is
    then replaced by the candidate that lowers it most (TextFooler, Jin et al., 2020, arXiv 1907.11932, and,
    with `character_edits`, TextBugger). The search ends at the first text that fools the classifier: on a
    random one that may be luck, so read it beside the null row of `attacks.text.evaluate`.

    Args:
        classify: returns probabilities of texts [n, classes]; asked about the candidates of a word at once.
        text: what to change.
        label: its class.
        candidates: replacements of a word.
        most_changed: largest share of words changed, rounded down.
        queries_per_word: the budget, in answers, for each word of the text.
        draws: answers that are averaged for each text; all are counted.
        any_answer: whether one wrong answer of `draws` is enough; see `Queries`.
        constraint: refuses changed texts before they are asked about.

    Raises:
        ValueError: for a share outside [0, 1], no draws, more draws than the budget reaches for, or answers
            that are not probabilities.
    """
    if not 0 <= most_changed <= 1:
        raise ValueError(f"the share of words that may change is 0 to 1; got {most_changed}")
    words = Words.of(text)
    budget = queries_per_word * max(len(words), 1)
    queries = Queries(classify, label, budget=budget, draws=draws, any_answer=any_answer)
    limit = math.floor(most_changed * len(words) + 1e-9)

    (score,), (wrong,) = queries.ask([text])
    changed, success = [], False
    for place in () if wrong else _ranked(queries, words, candidates, limit):
        options = [
            words.replaced(place, other) for other in candidates(words[place]) if other != words[place]
        ]
        if constraint is not None:
            options = [option for option in options if constraint(text, str(option))]
        scores, fooled = queries.ask([str(option) for option in options])
        # a text that fools comes before any other; among several, the lowest score
        best = min(range(len(scores)), key=lambda i: (not fooled[i], scores[i]), default=None)
        if best is None or not (fooled[best] or scores[best] < score):
            continue
        words, score, success = options[best], scores[best], fooled[best]
        changed.append(place)
        if success or len(changed) == limit:
            break
    return Result(text, str(words), label, not wrong, success, queries.spent, len(words), tuple(changed))


def _ranked(queries: Queries, words: Words, candidates: Candidates, limit: int) -> list[int]:
    """Places that have candidates, the most important first; without those that the budget does not reach."""
    if not limit:
        return []
    places = [place for place in range(len(words)) if candidates(words[place])]
    scores, _ = queries.ask([words.without(place) for place in places])
    return [place for _, place in sorted(zip(scores, places, strict=False))]
