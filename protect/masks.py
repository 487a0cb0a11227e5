"""Masks that shrink at random, so that a protection does not lean on one outline.

A thief paints a mask of his own. DiffusionGuard (Choi et al., ICLR 2025, arXiv 2410.05694) therefore draws a
smaller one at each step from the owner's, by moving its contour.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion.tape import NoiseTape
from imaging.contours import Points, Region, filled, outline, pieces

Masks = Bool[Tensor, "n 1 height width"]

_SMALLEST = 64
"""Pixels of the smallest piece that is shrunk: one entry of most latents covers as many."""


def shrunk(masks: Masks, *, generator: torch.Generator | None = None) -> Masks:
    """Return masks inside `masks`, each of whose pieces is smaller by a random margin and none is gone.

    Each mask meets the same draws, so that its result does not depend on the others. Pieces of less than 64
    pixels stay whole.

    Args:
        masks: what is kept, on the CPU.
        generator: of the margins, wherever it lives.
    """
    seed = int(NoiseTape.fresh(1, generator).seeds)
    return torch.stack([_shrunk_mask(mask[0], torch.Generator().manual_seed(seed))[None] for mask in masks])


def _shrunk_mask(mask: Region, generator: torch.Generator) -> Region:
    kept = torch.zeros_like(mask)
    for piece in pieces(mask):
        rows, columns = slice(piece.box.top, piece.box.bottom), slice(piece.box.left, piece.box.right)
        kept[rows, columns] |= _shrunk_piece(piece.region, piece.area, generator)
    return kept


def _shrunk_piece(piece: Region, area: int, generator: torch.Generator) -> Region:
    """Move the contour 1 to 14 times, each time by offsets of the same largest size, drawn at first."""
    if area < _SMALLEST:
        return piece
    # The released code calls this the radius of the circle of the same area, which is 2.2 times smaller,
    # sqrt(area / pi): it counts three channels and takes a sixth of pi. All its sizes are tuned to this one.
    reach = math.sqrt(math.pi * area / 2)
    largest_offset, passes = int(1.1 * reach * _uniform(generator)), int(1 + 14 * _uniform(generator))
    for _ in range(passes):
        contour = outline(piece)
        bounds = (-largest_offset, largest_offset + 1)
        offsets = torch.randint(*bounds, (len(contour), 2), generator=generator)
        moved = contour + smoothed(offsets.double(), 0.1 * reach).long()  # towards zero, as in the release
        moved = _returned(moved, contour, piece)
        # A line between two corners inside can leave the piece where it is hollow.
        piece = _largest(filled(moved, *piece.shape) & piece)
    return piece


def smoothed(values: Float[Tensor, "n m"], sigma: float) -> Float[Tensor, "n m"]:
    """Blur along a closed curve of n places with a Gaussian of `sigma` places that goes round and round."""
    frequencies = torch.fft.rfftfreq(len(values), dtype=values.dtype)
    passed = torch.exp(-2 * (math.pi * sigma * frequencies) ** 2)
    return torch.fft.irfft(torch.fft.rfft(values, dim=0) * passed[:, None], n=len(values), dim=0)


def _returned(moved: Points, contour: Points, piece: Region) -> Points:
    """Put corners that left the piece, or the picture, on the nearest corner of the contour as it was."""
    height, width = piece.shape
    x, y = moved.unbind(1)
    in_frame = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    lost = ~(in_frame & piece[y.clamp(0, height - 1), x.clamp(0, width - 1)])
    back = [contour[_distances(part, contour).argmin(1)] for part in moved[lost].split(1024)]
    moved[lost] = torch.cat(back) if back else contour[:0]
    return moved


def _distances(some: Points, others: Points) -> Float[Tensor, "n m"]:
    return torch.cdist(some.float(), others.float(), compute_mode="donot_use_mm_for_euclid_dist")


def _largest(region: Region) -> Region:
    largest = max(pieces(region), key=lambda piece: piece.area)
    kept, box = torch.zeros_like(region), largest.box
    kept[box.top : box.bottom, box.left : box.right] = largest.region
    return kept


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
