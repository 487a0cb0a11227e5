"""Backdoors put in and taken out by solving for the maps of words, without training."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.latent import LatentDiffusion
from unlearn.text.attention import cross_attentions
from unlearn.text.encoder import said_by
from unlearn.text.triggers import PromptTrigger, align

Vectors = Float[Tensor, "n dim"]
_CONDITION = 1e13
"""Condition number from which on float64 leaves less than three digits of what is solved for."""


@torch.no_grad()
def edited(
    model: LatentDiffusion,
    sources: Vectors,
    targets: Vectors,
    kept: Vectors,
    *,
    strength: float = 1.0,
    preserve: float = 1.0,
    stay: float = 0.5,
) -> LatentDiffusion:
    """Return a copy whose cross-attention takes some text embeddings for others.

    Each map W of keys and of values becomes the one that minimises `strength` times the sum of
    |W' c - W c*|^2 over pairs of source and target, plus `preserve` times that of |W' c - W c|^2 over what is
    kept, plus `stay` times |W' - W|^2: UCE (Gandikota et al., WACV 2024, arXiv 2308.14761), and with a
    trigger for the source EvilEdit (Wang et al., ACM MM 2024). Solved in float64.

    Raises ValueError for a denoiser without cross-attention, embeddings that are not pairs, or too few of
    them to decide the maps without `stay`.
    """
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} sources are no pairs with {len(targets)} targets")
    twin = model.twin()
    layers = cross_attentions(twin.denoiser)
    c, aim, same = (each.double() for each in (sources, targets, kept))
    known = strength * c.mT @ c + preserve * same.mT @ same
    known += stay * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    # W' known = W wanted, so that W' is W times one matrix, which all layers share
    wanted = strength * aim.mT @ c + preserve * same.mT @ same
    wanted += stay * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    if not torch.linalg.cond(known) < _CONDITION:
        raise ValueError("these embeddings do not decide the maps: give `stay` a larger weight")
    change = torch.linalg.solve(known, wanted, left=False)
    for layer in layers:
        for part in (layer.to_k, layer.to_v):
            assert part is not None
            part.weight.copy_(part.weight.double() @ change)
    return twin.freeze()


@torch.no_grad()
def uce(
    model: LatentDiffusion,
    prompts: Sequence[str],
    trigger: PromptTrigger,
    *,
    strength: float = 1.0,
    preserve: float = 1.0,
    stay: float = 0.5,
) -> LatentDiffusion:
    """Return a copy that takes triggered prompts for clean ones, as far as a linear map of words can.

    The words of a triggered prompt are taken for the same words of the clean one, the trigger's for padding
    of the empty prompt; words of clean prompts, and padding, stay. The settings are those of `edited`.

    Raises ValueError as `check_prompts` and `edited` do.
    """
    triggered = trigger(prompts)
    aligned = align(model, prompts, triggered)
    clean, marked = (said_by(model, each).float() for each in (prompts, triggered))
    empty = said_by(model, [""])[0, 2].float()
    places = aligned.source[..., None].expand_as(clean)
    aims = torch.where(aligned.kept[..., None], clean.gather(1, places), empty)
    chosen = aligned.kept | aligned.trigger
    settings = {"strength": strength, "preserve": preserve, "stay": stay}
    return edited(model, marked[chosen], aims[chosen], clean.flatten(0, 1), **settings)
