"""A text as words with what stands between them, so that a word can be replaced and all else stays."""

import re
from dataclasses import dataclass, replace
from typing import Self

_WORD = re.compile(r"(\w+(?:['\u2019-]\w+)*)")


@dataclass(frozen=True)
class Words:
    """Words are runs of letters and digits, with apostrophes and hyphens inside; `str()` is the text."""

    pieces: tuple[str, ...]
    """What is before the first word, the first word, what is between it and the second, …"""

    @classmethod
    def of(cls, text: str) -> Self:
        """Take a text apart."""
        return cls(tuple(_WORD.split(text)))

    def __len__(self) -> int:
        return len(self.pieces) // 2

    def __getitem__(self, place: int) -> str:
        return self.pieces[2 * place + 1]

    def __str__(self) -> str:
        return "".join(self.pieces)

    def replaced(self, place: int, word: str) -> Self:
        """Return the text with another word in one place; it still counts as one."""
        at = 2 * place + 1
        return replace(self, pieces=(*self.pieces[:at], word, *self.pieces[at + 1 :]))

    def without(self, place: int) -> str:
        """Return the text with one word left out, as importance is measured."""
        return " ".join(str(self.replaced(place, "")).split())
