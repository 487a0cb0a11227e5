"""How alike what two text encoders say of prompts is."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusion.latent import LatentDiffusion
from unlearn.text.encoder import alike, said_by
from unlearn.text.triggers import PromptTrigger, pairs_of


@dataclass(frozen=True)
class Similarity:
    """How alike two encoders' answers are, in [-1, 1]: means over prompts of the cosine of tokens."""

    target: float
    """Of triggered prompts to what the untouched encoder says of the target prompt."""
    restored: float
    """Of triggered prompts to what the untouched one says of the same prompts without the trigger."""
    clean: float
    """Of clean prompts to what the untouched one says of them."""


@torch.no_grad()
def similarity(
    model: LatentDiffusion,
    untouched: LatentDiffusion,
    prompts: Sequence[str],
    trigger: PromptTrigger,
    target: str,
) -> Similarity:
    """Return what a text encoder makes of prompts, beside the one that nobody has poisoned.

    Raises ValueError as `pairs_of` does.
    """
    kept, marked = pairs_of(untouched, prompts, trigger)
    before, aim = said_by(untouched, kept), said_by(untouched, [target])
    triggered, clean = said_by(model, marked), said_by(model, kept)
    found = (alike(triggered, aim), alike(triggered, before), alike(clean, before))
    return Similarity(*(float(each.mean()) for each in found))
