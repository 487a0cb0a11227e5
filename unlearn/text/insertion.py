"""Tokens in front of prompts, by number or by embedding, whether or not a text is read as them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.latent import LatentDiffusion
from diffusion.model import Condition

PLACE = "x"
"""A word of one token, in whose place others are put."""


class Insertion:
    """Prompts with some tokens in front. Raises ValueError as `check_room` does."""

    def __init__(self, model: LatentDiffusion, prompts: Sequence[str], tokens: int) -> None:
        check_room(model, prompts, tokens)
        self.model, self.tokens = model, tokens
        self._filled = _filled(prompts, tokens)
        with torch.no_grad():
            self._rows = model.rows(self._filled)

    def condition(self, inserted: Float[Tensor, "n tokens dim"]) -> Condition:
        """Return what the model is told with these embeddings in front of the prompts.

        One prompt is for all embeddings, and one embedding for all prompts.
        """
        count = max(len(inserted), len(self._rows))
        rows = self._rows.repeat(count // len(self._rows), 1, 1)
        rows[:, 1 : 1 + self.tokens] = inserted  # the opening mark comes first
        return self.model.condition(self._filled * (count // len(self._filled)), rows=rows)


def check_room(model: LatentDiffusion, prompts: Sequence[str], tokens: int) -> None:
    """Raise ValueError where a prompt leaves no room for some tokens in front, the tokenizer has no word of
    one token to hold a place, or the model reads prompts with two encoders."""
    if len(model.texts) > 1:
        raise ValueError(f"{model.name} reads prompts with two encoders: take a Stable Diffusion 1 or 2")
    if len(model.text.read(PLACE)) != 1:
        raise ValueError(f"the tokenizer of {model.name} takes {PLACE!r} for several tokens")
    for prompt, fits in zip(prompts, model.text.fit(_filled(prompts, tokens)), strict=True):
        if not fits:
            raise ValueError(f"the prompt leaves no room for {tokens} tokens more: shorten {prompt!r}")


def _filled(prompts: Sequence[str], tokens: int) -> list[str]:
    return [f"{' '.join([PLACE] * tokens)} {prompt}" for prompt in prompts]
