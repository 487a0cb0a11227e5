"""Questions to a text classifier, counted: what an attack knows and what it costs."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Classify = Callable[[Sequence[str]], Float[Tensor, "texts classes"]]
"""Class probabilities of texts. A random classifier answers anew for each text it is handed."""


class Queries:
    """Asks a classifier about one example until the budget is spent. Every answer is one query.

    A random classifier is asked `draws` times about each text, and the answers are averaged (expectation
    over transformation, Athalye et al., 2018, arXiv 1707.07397).
    """

    def __init__(
        self, classify: Classify, label: int, *, budget: int, draws: int = 1, any_answer: bool = False
    ) -> None:
        """Count from 0 to `budget` answers.

        With `any_answer` a text fools the classifier as soon as one of its `draws` answers is wrong, as for
        an attacker who may ask again; otherwise when their average is.

        Raises ValueError for no draws or a budget that does not reach for one text.
        """
        if not 1 <= draws <= budget:
            raise ValueError(f"a text takes draws queries, at least 1 of the budget; got {draws} of {budget}")
        self.classify, self.label, self.budget = classify, label, budget
        self.draws, self.any_answer = draws, any_answer
        self.spent = 0

    def ask(self, texts: Sequence[str]) -> tuple[list[float], list[bool]]:
        """Return the label's probability for texts, and whether each fools the classifier.

        Both are cut short where the budget ends. Raises ValueError for answers that are not one row of
        probabilities per text.
        """
        asked = [
            text for text in texts[: (self.budget - self.spent) // self.draws] for _ in range(self.draws)
        ]
        if not asked:
            return [], []
        self.spent += len(asked)
        answers = self.classify(asked)
        if answers.ndim != 2 or len(answers) != len(asked) or not torch.isfinite(answers).all():
            raise ValueError(
                f"a classifier returns finite probabilities, one row per text, here {len(asked)}; "
                f"got {tuple(answers.shape)}"
            )
        if not 0 <= self.label < answers.shape[1]:
            raise ValueError(f"the label is {self.label}; the classifier has {answers.shape[1]} classes")
        answers = answers.unflatten(0, (-1, self.draws))  # [texts, draws, classes]
        mean = answers.mean(1)
        single, together = answers.argmax(2) != self.label, mean.argmax(1) != self.label
        fooled = single.any(1) if self.any_answer else together
        return mean[:, self.label].tolist(), fooled.tolist()
