"""Large pictures in overlapping tiles whose feathered weights sum to one everywhere.

The weights are a partition of unity, so a merged perturbation is a convex combination of the tiles': when
each of them stays within eps, it does. One tile at a time is alive, and the weights are outer products of two
short vectors, so that the memory beside the result does not grow with the picture.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Planes = Float[Tensor, "batch channels height width"]
Padded = Float[Tensor, "batch channels padded_height padded_width"]
TileWeights = Float[Tensor, "height width"]


class Box(NamedTuple):
    """A rectangle of pixels; `bottom` and `right` are the first row and column outside of it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


class Span(NamedTuple):
    """One interval of an axis with the weight of each of its pixels."""

    start: int
    stop: int
    weights: Float[Tensor, " length"]


@dataclass(frozen=True, eq=False)
class TilePlan:
    """Where the tiles of one picture lie: every row span combined with every column span, row by row."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def height(self) -> int:
        return self.rows[-1].stop

    @property
    def width(self) -> int:
        return self.columns[-1].stop

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """The tiles' rectangles, in the order in which `split` yields and `merge` expects them."""
        pairs = product(self.rows, self.columns)
        return tuple(Box(row.start, column.start, row.stop, column.stop) for row, column in pairs)

    def weights(self, index: int) -> TileWeights:
        """Return tile `index`'s share in each of its pixels; over all tiles the shares sum to one."""
        row, column = divmod(index, len(self.columns))
        return torch.outer(self.rows[row].weights, self.columns[column].weights)


def plan_tiles(
    height: int, width: int, *, size: int, overlap: int, multiple: int = 1, grid: int = 1
) -> TilePlan:
    """Cover a picture with square tiles that overlap by `overlap` pixels or more.

    The last tile of an axis is shifted inwards to end at the edge; an axis shorter than `size` has one tile
    of its own length, which `pad_to_multiple` prepares for a model. Tiles fade by a raised cosine.

    With a `grid` every tile starts at a multiple of it, such as a block of JPEG; the last of an axis is then
    up to `grid` - 1 pixels shorter than the others.

    Args:
        height: rows of the picture.
        width: columns of the picture.
        size: side of a tile in pixels, a multiple of `multiple`.
        overlap: pixels shared by neighbours, at most half of `size`.
        multiple: what the model needs the sides of its images to be a multiple of.
        grid: what tiles start at multiples of; divides `size` and `overlap`.

    Raises:
        ValueError: a side is not positive, `size` is no multiple, `overlap` is out of range, or `grid` does
            not divide both.
    """
    if min(height, width) < 1:
        raise ValueError(f"a picture to be tiled has positive sides, got {height} x {width}")
    if size < 1 or size % multiple:
        raise ValueError(f"the tile size must be a positive multiple of {multiple}, got {size}")
    if not 0 <= overlap <= size // 2:
        raise ValueError(f"the overlap must lie between 0 and half of the tile size {size}, got {overlap}")
    if size % grid or overlap % grid:
        raise ValueError(f"the grid must divide the tile size {size} and the overlap {overlap}, got {grid}")
    return TilePlan(_spans(height, size, overlap, grid), _spans(width, size, overlap, grid))


def _spans(length: int, size: int, overlap: int, grid: int) -> tuple[Span, ...]:
    size = min(size, length)
    last = math.ceil((length - size) / grid) * grid
    starts = [*range(0, length - size, max(size - overlap, 1)), last]
    stops = [min(start + size, length) for start in starts]
    windows = [
        _window(start, stop - start, length, overlap) for start, stop in zip(starts, stops, strict=True)
    ]
    total = torch.zeros(length, dtype=torch.float64)
    for start, stop, window in zip(starts, stops, windows, strict=True):
        total[start:stop] += window
    return tuple(
        Span(start, stop, (window / total[start:stop]).float())
        for start, stop, window in zip(starts, stops, windows, strict=True)
    )


def _window(start: int, size: int, length: int, overlap: int) -> Tensor:
    # The picture's own border has no neighbour to fade into; half-pixel offsets keep every weight above zero.
    window = torch.ones(size, dtype=torch.float64)
    ramp = torch.sin((torch.arange(overlap, dtype=torch.float64) + 0.5) / max(overlap, 1) * math.pi / 2) ** 2
    if start > 0:
        window[:overlap] *= ramp
    if start + size < length:
        window[size - overlap :] *= ramp.flip(0)
    return window


def split(images: Planes, plan: TilePlan) -> Iterator[Planes]:
    """Yield the tiles of `images` as views, in the order of `plan.boxes`.

    Raises:
        ValueError: the plan was made for another size.
    """
    if tuple(images.shape[-2:]) != (plan.height, plan.width):
        got = " x ".join(str(side) for side in images.shape[-2:])
        raise ValueError(f"the plan covers {plan.height} x {plan.width} pixels, got images of {got}")
    for box in plan.boxes:
        yield images[..., box.top : box.bottom, box.left : box.right]


def merge(tiles: Iterable[Planes], plan: TilePlan, *, device: torch.device | str = "cpu") -> Planes:
    """Blend tiles, drawn one at a time from an iterable, into full images on `device`.

    Pass a generator to hold one at a time: `merge((protect(tile) for tile in split(images, plan)), plan)`.

    Args:
        tiles: float tensors [batch, channels, h, w] in the order of `plan.boxes`.
        plan: where they belong.
        device: where the sum is kept; a large picture's sum belongs on the CPU.

    Raises:
        ValueError: a tile has another size than its box, or their number is not the plan's.
    """
    merged: Tensor | None = None
    for index, (box, tile) in enumerate(zip(plan.boxes, tiles, strict=True)):
        if tuple(tile.shape[-2:]) != (box.height, box.width):
            got = " x ".join(str(side) for side in tile.shape[-2:])
            raise ValueError(f"tile {index} must be {box.height} x {box.width} pixels, got {got}")
        if merged is None:
            merged = torch.zeros(*tile.shape[:-2], plan.height, plan.width, dtype=tile.dtype, device=device)
        share = tile.to(merged) * plan.weights(index).to(merged)
        merged[..., box.top : box.bottom, box.left : box.right] += share
    assert merged is not None
    return merged


def pad_to_multiple(images: Planes, multiple: int) -> Padded:
    """Extend images at the bottom and right until both sides are multiples of `multiple`.

    The border is mirrored, or repeated where it is too short to be mirrored. Undo it with `crop_padding`.
    """
    height, width = images.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if right:
        images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    if below:
        images = F.pad(images, (0, 0, 0, below), mode="reflect" if below < height else "replicate")
    return images


def crop_padding(images: Padded, height: int, width: int) -> Planes:
    """Cut padded images back to their original `height` and `width`, as a view."""
    return images[..., :height, :width]
