"""Where each word of a prompt is looked at from, as one map that a loss can be built on."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.attention import Attention, AttentionMap, attentions, recorded_attention

TokenMaps = Float[Tensor, "batch tokens height width"]

MOST_QUERIES = 32 * 32
"""Finer layers cost much memory and say little about words."""


def recording(network: nn.Module) -> AbstractContextManager[list[AttentionMap]]:
    """Record what `token_maps` takes; each call has a list of its own, and keeps its graph.

    Raises ValueError for a network without cross-attention.
    """
    cross_attentions(network)
    return recorded_attention(network, cross_only=True, most_queries=MOST_QUERIES)


def cross_attentions(network: nn.Module) -> list[Attention]:
    """Return the layers that look at words. Raises ValueError where there is none."""
    layers = list(attentions(network, cross_only=True).values())
    if not layers:
        raise ValueError(
            "the denoiser has no cross-attention: take a Stable Diffusion, whose U-Net looks at words"
        )
    return layers


def token_maps(maps: Sequence[AttentionMap], size: tuple[int, int]) -> TokenMaps:
    """Return one map for each token, from the layers of one call on latents of `size`.

    Attention weights are averaged over heads, brought to the finest layer's resolution, averaged over layers,
    and multiplied by the number of tokens, so that 1 is what each gets if none is preferred.

    Raises ValueError where no layer was recorded.
    """
    if not maps:
        raise ValueError(f"no cross-attention has {MOST_QUERIES} places or fewer: take smaller pictures")
    fine, total = _sides(max(each.queries for each in maps), size), torch.zeros(())
    for each in maps:
        grid = each.weights.mean(1).mT.unflatten(-1, _sides(each.queries, size))
        total = total.to(grid) + F.interpolate(grid, size=fine, mode="bilinear")
    return total * total.shape[1] / len(maps)


def normalised(maps: TokenMaps) -> TokenMaps:
    """Return maps divided by their mean over places: where a token is looked at from, and not how much.

    It keeps the gradient bounded, where bringing smallest and largest to 0 and 1 does not.
    """
    return maps / maps.mean((-2, -1), keepdim=True)


def _sides(queries: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer with so many places, whose strides were powers of 2, rounded up."""
    height, width = size
    for halvings in range(12):
        sides = math.ceil(height / 2**halvings), math.ceil(width / 2**halvings)
        if sides[0] * sides[1] == queries:
            return sides
    raise ValueError(f"{queries} places are no halving of {height}x{width} latents")
