"""What a thief tries before he uses a picture, in words: `none`, `jpeg75`, `jpeg75+half`, `diffpure50`.

A word is a name of the table of purifiers, and a number behind it is that purifier's first setting. `+`
stands between those that are applied in turn.
"""

import difflib
import re
from collections.abc import Callable

from diffusion.model import DiffusionModel
from purify.methods import METHODS, UnknownMethodError, create, entry, options
from purify.purifier import Images

NONE = "none"
"""The chain that does nothing."""
SHORT = {"half": "resize0.5"}
"""Words of their own for common settings."""
MOVING = ("crop",)
"""Purifiers that show things elsewhere than they were."""


class Chain:
    """Purifiers in turn, on the same noise for every image and at every call."""

    def __init__(self, words: str, prior: Callable[[], DiffusionModel] | None = None) -> None:
        """Build the chain.

        Args:
            words: see the module's docstring.
            prior: returns the model of those that need one; not called if none does.

        Raises:
            purify.methods.UnknownMethodError: for a word that is not in the table, with the nearest one.
            ValueError: for a number out of range, or where a model is needed and none is given.
        """
        named = parse(words)
        self.aligned = not any(name in MOVING for name, _ in named)
        """Whether things are where they were, so that the result can be compared with the original."""
        self.purifiers = [
            create(name, prior() if prior is not None and entry(name).needs_model else None, **settings)
            for name, settings in named
        ]

    def __call__(self, images: Images, *, seed: int = 0) -> Images:
        """Return purified images; noise depends on `seed` and the place in the chain alone."""
        purified = images
        for place, purifier in enumerate(self.purifiers):
            there = next(purifier.parameters(), images).device
            purified = purifier.seeded(seed + place)(purified.to(there)).to(images)
        return purified


def parse(words: str) -> list[tuple[str, dict[str, float]]]:
    """Return the purifiers, by name with their settings, that words stand for.

    Raises UnknownMethodError for a word that is not in the table, with the nearest one.
    """
    return [] if words.lower() == NONE else [_parse(word) for word in words.lower().split("+")]


def _parse(word: str) -> tuple[str, dict[str, float]]:
    word = SHORT.get(word, word)
    if word in METHODS:
        return word, {}
    numbered = re.fullmatch(r"(.*?[a-z])(\d+(?:\.\d+)?)", word)
    name = numbered[1] if numbered else word
    if numbered is None or name not in METHODS:
        known = [NONE, *SHORT, *METHODS]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownMethodError(
            f"unknown counter-measure {word!r}; {hint}available: {', '.join(known)}, with a number behind a"
            " name for its first setting and + between several"
        )
    number = float(numbered[2])
    return name, {next(iter(options(name))): int(number) if number.is_integer() else number}
