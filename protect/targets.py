"""Target pictures that targeted methods pull towards: drawn by code, high in contrast, equal wherever a
tile is cut."""

import torch
from jaxtyping import Float
from torch import Tensor


def texture(
    height: int, width: int, *, top: int = 0, left: int = 0, period: int = 64
) -> Float[Tensor, "1 3 height width"]:
    """A black and white tiling of rings crossed by diagonal bars, as a float image in [0,1].

    A pixel's value depends on its absolute position alone, so that a tile starting at (`top`, `left`) shows
    the matching crop of the whole. `period` is the side of a repeat in pixels: a multiple of eight keeps it
    aligned with the latent grid. Busy pictures hide short periods and flat ones long ones (observed in
    FastProtect, CVPR 2025).
    """
    rows = (torch.arange(top, top + height) % period - (period - 1) / 2)[:, None]
    columns = (torch.arange(left, left + width) % period - (period - 1) / 2)[None, :]
    rings = torch.sin(torch.hypot(rows, columns) * (8 * torch.pi / period))
    bars = torch.sin((rows + columns) * (4 * torch.pi / period))
    return (rings * bars > 0).float().expand(1, 3, height, width)


def grey(height: int, width: int) -> Float[Tensor, "1 3 height width"]:
    """The featureless mid-grey picture, zero in the range that autoencoders consume."""
    return torch.full((1, 3, height, width), 0.5)


def checkerboard(height: int, width: int, *, period: int = 4) -> Float[Tensor, "height width"]:
    """A checkerboard of 1 and -1 with squares of half a period.

    Of the flat patterns tried, period 4 moved the least moved of three tiny encoders most after JPEG 75.
    """
    rows, columns = (torch.arange(side) % period < period / 2 for side in (height, width))
    return torch.where(rows[:, None] == columns[None, :], 1.0, -1.0)
