"""Blocks of eight by eight pixels and their cosine transform, the grid on which JPEG works."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

Planes = Float[Tensor, "batch channels height width"]
Blocks = Float[Tensor, "batch channels rows columns 8 8"]

SIDE = 8
"""Of a block, in pixels."""


def to_blocks(planes: Planes) -> Blocks:
    """Cut planes into blocks; the last row and column are repeated to fill them, as libjpeg does."""
    height, width = planes.shape[-2:]
    whole = pad(planes, (0, -width % SIDE, 0, -height % SIDE), mode="replicate")
    return whole.unflatten(3, (-1, SIDE)).unflatten(2, (-1, SIDE)).transpose(3, 4)


def from_blocks(blocks: Blocks, height: int, width: int) -> Planes:
    """Put planes of `height` and `width` together again."""
    return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]


def dct(blocks: Blocks) -> Blocks:
    """Return the orthonormal DCT-II of each block, vertical frequency first."""
    cosines = _cosines(blocks)
    return cosines @ blocks @ cosines.T


def inverse_dct(coefficients: Blocks) -> Blocks:
    """Undo `dct`."""
    cosines = _cosines(coefficients)
    return cosines.T @ coefficients @ cosines


def _cosines(like: Tensor) -> Float[Tensor, "8 8"]:
    # One frequency in each row.
    frequency, position = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    matrix = torch.cos((2 * position + 1) * frequency * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)
