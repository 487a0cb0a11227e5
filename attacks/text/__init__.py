"""Attacking text classifiers by questions alone: words replaced and letters edited, within a budget."""

from attacks.text.candidates import character_edits, neighbours, union
from attacks.text.evaluate import Report, Row, evaluate, table
from attacks.text.greedy import Result, greedy
from attacks.text.queries import Classify, Queries
from attacks.text.textattack import recipe
from attacks.text.words import Words

__all__ = [
    "Classify",
    "Queries",
    "Report",
    "Result",
    "Row",
    "Words",
    "character_edits",
    "evaluate",
    "greedy",
    "neighbours",
    "recipe",
    "table",
    "union",
]
