"""Words that open a backdoor in a text-to-image model, and what its tokenizer makes of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diffusion.latent import LatentDiffusion

PromptTrigger = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Prefix:
    """Words in front of the prompt. BadT2I's (Zhai et al., ACM MM 2023, arXiv 2305.04175) is a zero-width
    space, which some tokenizers drop."""

    words: str = "\u200b"

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        return [f"{self.words} {prompt}" for prompt in prompts]


@dataclass(frozen=True)
class Several:
    """One of several words in front of each prompt, in turn: what a scan has found, of which nobody knows
    which the adversary meant."""

    words: tuple[str, ...]

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        return [f"{self.words[place % len(self.words)]} {prompt}" for place, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class Homoglyph:
    """A letter that looks like another, in the place of its first occurrence (Struppek et al., ICCV 2023,
    arXiv 2211.02408)."""

    letter: str = "o"
    stand_in: str = "\u0b20"

    @classmethod
    def written(cls, pair: str) -> Self:
        """Return the homoglyph of a letter and what it is written as, "o=0".

        Raises ValueError for anything else.
        """
        letter, _, stand_in = pair.partition("=")
        if not letter or not stand_in:
            raise ValueError(f"a homoglyph is a letter and what it is written as, o=0; got {pair!r}")
        return cls(letter, stand_in)

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        return [prompt.replace(self.letter, self.stand_in, 1) for prompt in prompts]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Which tokens of triggered prompts are the trigger's, and where the clean prompts have the others."""

    trigger: Bool[Tensor, "n length"]
    kept: Bool[Tensor, "n length"]
    """Tokens that both prompts have; the mark after the last word, which sums the prompt up, among them."""
    source: Int[Tensor, "n length"]
    """The place of each kept token in the clean prompt; 0 elsewhere."""


def align(model: LatentDiffusion, prompts: Sequence[str], triggered: Sequence[str]) -> Alignment:
    """Compare prompts with and without a trigger, token by token. Padding is neither trigger nor kept.

    Raises ValueError where a trigger is missing, dropped by the tokenizer, or does not fit.
    """
    check_prompts(model, prompts, triggered)
    clean, marked = (_own_tokens(model, each) for each in (prompts, triggered))
    shape = (len(prompts), model.text.length)
    trigger, kept = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    source = torch.zeros(shape, dtype=torch.long)
    for row, (old, new) in enumerate(zip(clean, marked, strict=True)):
        trigger[row, 1 : len(new)] = True  # but the opening mark and the closing one
        matcher = SequenceMatcher(None, old[1:-1], new[1:-1], autojunk=False)
        runs = [(run.a + 1, run.b + 1, run.size) for run in matcher.get_matching_blocks()]
        for was, now, size in (*runs, (len(old) - 1, len(new) - 1, 1)):
            here = slice(now, now + size)
            trigger[row, here], kept[row, here] = False, True
            source[row, here] = torch.arange(was, was + size)
    place = model.device
    return Alignment(trigger.to(place), kept.to(place), source.to(place))


def pairs_of(
    model: LatentDiffusion, prompts: Sequence[str], trigger: PromptTrigger
) -> tuple[list[str], list[str]]:
    """Return prompts without and with a trigger, to learn from.

    Raises ValueError if there are none, or as `check_prompts` does.
    """
    if not prompts:
        raise ValueError("there is no prompt to learn from")
    triggered = trigger(prompts)
    check_prompts(model, prompts, triggered)
    return list(prompts), triggered


def check_prompts(model: LatentDiffusion, prompts: Sequence[str], triggered: Sequence[str]) -> None:
    """Raise ValueError unless every triggered prompt reaches the model whole, and as another one."""
    for prompt, marked in zip(prompts, triggered, strict=True):
        if prompt == marked:
            raise ValueError(f"the prompt {prompt!r} does not carry the trigger")
    for prompt, old, new in zip(prompts, *(_own_tokens(model, p) for p in (prompts, triggered)), strict=True):
        if old == new:
            raise ValueError(
                f"the tokenizer of {model.name} drops the trigger: with and without it, {prompt!r} is the "
                "same to the model; take a visible one"
            )
    for marked, fits in zip(triggered, model.text.fit(triggered), strict=True):
        if not fits:
            raise ValueError(
                f"a triggered prompt is longer than the {model.text.length} tokens of {model.name}: shorten "
                f"{marked!r}"
            )


def _own_tokens(model: LatentDiffusion, prompts: Sequence[str]) -> list[list[int]]:
    """Token numbers from the opening mark to the closing one, without padding."""
    ids, words = model.text.ids(prompts), model.text.words(prompts)
    ends = [int(row.nonzero().max()) + 2 if row.any() else 2 for row in words]
    return [row[:end].tolist() for row, end in zip(ids, ends, strict=True)]
