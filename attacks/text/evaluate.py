"""How often a text classifier is right after an attack, beside what luck alone does.

The usual figure, accuracy under attack (AUA), stops at the first wrong answer. A random classifier gives
wrong answers by itself, so each attack is run twice: as it is, and with nothing changed, where the classifier
is shown the original whatever is asked. That is the null row: the same search within the same budget, without
any change. Afterwards fresh answers judge the texts that the attacks end with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from attacks.text.greedy import Result
from attacks.text.queries import Classify

Attack = Callable[[Classify, str, int], Result]
"""For instance `functools.partial(greedy, candidates=character_edits)`."""


@dataclass(frozen=True)
class Row:
    """Figures over all texts, those misclassified without an attack included."""

    attack: str
    texts: int
    clean: float
    """Share that was right at the first question."""
    under_attack: float
    """AUA: share that was right then and never fooled."""
    success_rate: float
    """Share fooled of those that were right."""
    fresh: float
    """Share of fresh answers about the final texts that is right."""
    queries: float
    """Mean number of answers."""
    changed: float
    """Mean share of words changed where the attack succeeded; 0 if it never did."""


@dataclass(frozen=True)
class Report:
    """One attack's results per text, and those of the same search with nothing changed."""

    attack: str
    results: tuple[Result, ...]
    null: tuple[Result, ...]
    fresh: tuple[float, ...]
    """Share of right answers about each final text."""
    fresh_null: tuple[float, ...]
    """The same about each original."""

    def rows(self) -> list[Row]:
        """Return the attack's row and its null row."""
        return [
            _row(self.attack, self.results, self.fresh),
            _row(f"{self.attack}, null", self.null, self.fresh_null),
        ]


def evaluate(
    classify: Classify,
    texts: Sequence[str],
    labels: Sequence[int],
    attacks: Mapping[str, Attack],
    *,
    answers: int = 10,
    callback: Callable[[str, Result], None] | None = None,
) -> list[Report]:
    """Run attacks on a classifier and judge them by fresh answers.

    Args:
        classify: returns probabilities of texts; a random classifier answers anew each time.
        texts: what is attacked.
        labels: their classes.
        attacks: by name.
        answers: fresh answers per final text and per original.
        callback: called with the attack's name and each result, null ones excepted.

    Raises:
        ValueError: for no texts, no answers, or labels that do not match.
    """
    if not texts or len(texts) != len(labels) or answers < 1:
        raise ValueError(
            "at least one text, one label for each, and at least one answer are needed; "
            f"got {len(texts)} texts, {len(labels)} labels and {answers} answers"
        )
    reports = []
    for name, attack in attacks.items():
        results, null = [], []
        for text, label in zip(texts, labels, strict=True):
            results.append(attack(classify, text, label))
            lucky = attack(unmoved(classify, text), text, label)
            null.append(replace(lucky, text=text, changed=()))
            if callback is not None:
                callback(name, results[-1])
        judged = [tuple(_right(classify, one, answers) for one in part) for part in (results, null)]
        reports.append(Report(name, tuple(results), tuple(null), *judged))
    return reports


def unmoved(classify: Classify, text: str) -> Classify:
    """Return a classifier that answers about `text`, whatever it is asked."""
    return lambda asked: classify([text] * len(asked))


def _right(classify: Classify, result: Result, answers: int) -> float:
    said = classify([result.text] * answers).argmax(1)
    return float((said == result.label).float().mean())


def _row(name: str, results: Sequence[Result], fresh: Sequence[float]) -> Row:
    clean = sum(one.clean for one in results)
    won = [one for one in results if one.success]
    return Row(
        name,
        len(results),
        clean / len(results),
        sum(one.survived for one in results) / len(results),
        len(won) / max(clean, 1),
        sum(fresh) / len(fresh),
        sum(one.queries for one in results) / len(results),
        sum(len(one.changed) / one.words for one in won) / max(len(won), 1),
    )


def table(reports: Sequence[Report]) -> str:
    """Return reports as Markdown, in per cent; each attack stands above its null row."""
    lines = [
        "| attack | texts | clean | under attack | success | fresh answers | queries | words changed |",
        "|---" * 8 + "|",
    ]
    for row in (row for report in reports for row in report.rows()):
        shares = [row.clean, row.under_attack, row.success_rate, row.fresh]
        cells = [row.attack, str(row.texts), *(f"{100 * share:.1f}" for share in shares)]
        lines.append(f"| {' | '.join(cells)} | {row.queries:.0f} | {100 * row.changed:.1f} |")
    return "\n".join(lines) + "\n"
