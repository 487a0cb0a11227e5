"""What a word may be replaced by: functions from a word to a list of words."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

Candidates = Callable[[str], Sequence[str]]
"""Replacements of a word, best first; an empty list leaves the word alone."""

LOOKALIKES = {
    "a": ("\u0430", "@"),
    "c": ("\u0441",),
    "e": ("\u0435", "3"),
    "i": ("\u0456", "1"),
    "l": ("1",),
    "o": ("\u043e", "0"),
    "p": ("\u0440",),
    "s": ("\u0455", "5"),
    "x": ("\u0445",),
    "y": ("\u0443",),
}
"""Cyrillic twins of Latin letters, then digits and signs."""


def swapped(word: str) -> list[str]:
    """Exchange two neighbouring letters; the first and the last stay, so that people read on."""
    return [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(1, len(word) - 2)]


def shortened(word: str) -> list[str]:
    """Leave out an inner letter."""
    return [word[:i] + word[i + 1 :] for i in range(1, len(word) - 1)]


def lengthened(word: str) -> list[str]:
    """Insert a space, or an inner letter twice."""
    spaces = [f"{word[:i]} {word[i:]}" for i in range(1, len(word))]
    return spaces + [word[:i] + word[i] + word[i:] for i in range(1, len(word) - 1)]


def disguised(word: str) -> list[str]:
    """Substitute a letter by one that looks like it."""
    return [
        word[:i] + twin + word[i + 1 :]
        for i, letter in enumerate(word)
        for twin in LOOKALIKES.get(letter.lower(), ())
    ]


def character_edits(word: str) -> list[str]:
    """Return all words one edit away (TextBugger, Li et al., NDSS 2019, arXiv 1812.05271).

    Edits swap, delete, insert or disguise a letter.
    """
    edits = [*swapped(word), *shortened(word), *lengthened(word), *disguised(word)]
    return [edit for edit in dict.fromkeys(edits) if edit != word]


def neighbours(
    vocabulary: Sequence[str],
    embeddings: Float[Tensor, "words width"],
    *,
    count: int = 50,
    least: float = 0.5,
) -> Candidates:
    """Return the source of a word's nearest words by cosine (TextFooler, Jin et al., 2020, arXiv 1907.11932).

    Args:
        vocabulary: lower-case words, one per row of `embeddings`. Other words have no neighbours.
        embeddings: one vector per word.
        count: how many neighbours at most.
        least: smallest cosine of a neighbour.

    Raises:
        ValueError: if there is not one row per word, or for a count below 1.
    """
    if embeddings.ndim != 2 or len(vocabulary) != len(embeddings) or count < 1:
        raise ValueError(
            f"one embedding per word and a count of at least 1 are needed; got {len(vocabulary)} words, "
            f"embeddings {tuple(embeddings.shape)} and count {count}"
        )
    places = {word: place for place, word in enumerate(vocabulary)}
    directions = normalize(embeddings.detach().float(), dim=1)

    def candidates(word: str) -> list[str]:
        place = places.get(word.lower())
        if place is None:
            return []
        cosines = directions @ directions[place]
        cosines[place] = -2.0
        nearest = cosines.topk(min(count, len(vocabulary) - 1))
        pairs = zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
        near = [vocabulary[i] for i, cosine in pairs if cosine >= least]
        return [other.capitalize() for other in near] if word[:1].isupper() else near

    return candidates


def union(*sources: Candidates) -> Candidates:
    """Return what any of several sources offers, in their order."""
    return lambda word: list(dict.fromkeys(other for source in sources for other in source(word)))
