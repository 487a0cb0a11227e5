"""TextAttack's recipes (Morris et al., 2020, arXiv 2005.05909) on our callable classifiers."""

import importlib
from typing import Any

from attacks.adapters import MissingLibraryError
from attacks.text.evaluate import Attack
from attacks.text.greedy import Result
from attacks.text.queries import Classify
from attacks.text.words import Words


def recipe(name: str = "TextFoolerJin2019", *, queries_per_word: int = 50) -> Attack:
    """Return a recipe of TextAttack as an attack for `attacks.text.evaluate`.

    TextAttack is not among our dependencies and pins old ones; tests cover this adapter only where it is
    installed. Recipes fetch embeddings and word lists on first use. TextAttack's memory of answers is turned
    off, or a random classifier would be asked once only about each text.

    Args:
        name: a class of `textattack.attack_recipes`, such as "TextBuggerLi2018" or "BERTAttackLi2020".
        queries_per_word: the budget for each word of a text.

    Raises:
        MissingLibraryError: when TextAttack is not installed.
        ValueError: for an unknown recipe.
    """
    try:
        attack_recipes, attack_results, wrappers = (
            importlib.import_module(f"textattack.{part}")
            for part in ("attack_recipes", "attack_results", "models.wrappers")
        )
    except ImportError as error:
        raise MissingLibraryError(
            "this attack is TextAttack's: install it with pip install textattack, in an environment of its "
            "own if it disagrees with other packages; attacks.text.greedy needs nothing"
        ) from error
    kind = getattr(attack_recipes, name, None)
    if not hasattr(kind, "build"):
        raise ValueError(f"textattack.attack_recipes has no {name!r}; for instance TextFoolerJin2019")

    class Wrapped(wrappers.ModelWrapper):
        def __init__(self, classify: Classify) -> None:
            self.model = classify

        def __call__(self, text_input_list: list[str], **options: Any) -> Any:
            return self.model(text_input_list)

    def attacked(classify: Classify, text: str, label: int) -> Result:
        made = kind.build(Wrapped(classify))
        words = Words.of(text)
        made.goal_function.use_cache = False
        made.goal_function.query_budget = queries_per_word * max(len(words), 1)
        found = made.attack(text, label)
        final = found.perturbed_result.attacked_text.text
        skipped = isinstance(found, attack_results.SkippedAttackResult)
        success = isinstance(found, attack_results.SuccessfulAttackResult)
        changed = found.original_result.attacked_text.all_words_diff(found.perturbed_result.attacked_text)
        queries = max(found.original_result.num_queries, found.perturbed_result.num_queries)
        return Result(
            text, final, label, not skipped, success, queries, len(words), tuple(sorted(map(int, changed)))
        )

    return attacked
