"""Regions of a mask: their separate pieces, the outline of one, and the area that an outline encloses.

Pixels that touch at a corner belong together. Columns come first in a point, (x, y), as Pillow draws them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import pad

from imaging.tiles import Box

Region = Bool[Tensor, "height width"]
Points = Int[Tensor, "n 2"]


class Piece(NamedTuple):
    """One connected part of a region, cut out by the smallest box around it."""

    box: Box
    region: Region

    @property
    def area(self) -> int:
        return int(self.region.sum())


def pieces(region: Region) -> list[Piece]:
    """Return the connected pieces of a region, in the order of their first pixels, row by row."""
    rows, starts, stops = _runs(region)
    numbers = _numbered(len(rows), _touching(rows, starts, stops, region.shape[1]))
    order = np.argsort(numbers, kind="stable")
    found = []
    for mine in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else []:
        own, left, right = rows[mine], starts[mine], stops[mine]
        box = Box(int(own[0]), int(left.min()), int(own[-1]) + 1, int(right.max()))
        edges = np.zeros((box.height, box.width + 1), dtype=np.int8)
        edges[own - box.top, left - box.left], edges[own - box.top, right - box.left] = 1, -1
        inside = np.cumsum(edges[:, :-1], axis=1, dtype=np.int8).astype(bool)
        found.append(Piece(box, torch.from_numpy(inside)))
    return found


def _runs(region: Region) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The row, first column and column behind the last of each unbroken run of pixels."""
    edges = np.diff(np.pad(region.numpy().astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    return rows, starts, np.nonzero(edges == -1)[1]


def _touching(rows: np.ndarray, starts: np.ndarray, stops: np.ndarray, width: int) -> list[tuple[int, int]]:
    """Pairs of runs in neighbouring rows of which some pixels share an edge or a corner."""
    # Places along one line of all rows, with a gap between rows that no run can reach over.
    first, behind = rows * (width + 2) + starts, rows * (width + 2) + stops
    low = np.searchsorted(behind, first + width + 2, side="left")
    high = np.searchsorted(first, behind + width + 2, side="right")
    return [(run, below) for run, (a, b) in enumerate(zip(low, high, strict=True)) for below in range(a, b)]


def _numbered(count: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """For each of `count` things the smallest number among all that pairs link it with (union-find)."""
    parents = list(range(count))

    def root(thing: int) -> int:
        while parents[thing] != thing:
            parents[thing] = thing = parents[parents[thing]]
        return thing

    for one, other in pairs:
        one, other = sorted((root(one), root(other)))
        parents[other] = one
    return np.array([root(thing) for thing in range(count)], dtype=np.int64)


def outline(region: Region) -> Points:
    """Return the outer border pixels of a region of one piece, clockwise from its first pixel.

    Neighbours in the list touch, the last and the first too (Moore's border following). Where the region is
    one pixel wide the border passes twice. Holes do not show.

    Raises ValueError if the region is empty.
    """
    width = region.shape[1] + 2
    inside = pad(region, (1, 1, 1, 1)).numpy().tobytes()
    here = first = inside.find(1)
    if first < 0:
        raise ValueError("an empty region has no outline")
    ways = (1, width + 1, width, width - 1, -1, -width - 1, -width, 1 - width)  # clockwise from the right
    path, turn, out = [here], 0, None
    while True:
        for way in range(turn, turn + 8):
            if inside[here + ways[way % 8]]:
                break
        else:  # a single pixel
            break
        way %= 8
        if here == first and way == out:
            path.pop()
            break
        out = way if out is None else out
        here += ways[way]
        path.append(here)
        turn = way + 7 - way % 2  # go on behind the last neighbour that was found to be outside
    places = torch.tensor(path)
    return torch.stack([places % width - 1, places // width - 1], dim=1)


def filled(points: Points, height: int, width: int) -> Region:
    """Return the region that a closed outline encloses, the outline included, in a frame of this size.

    Where the outline crosses itself an area is inside if an odd number of turns goes around it.
    """
    frame = Image.new("L", (width, height))
    corners = [tuple(point) for point in points.tolist()]
    ImageDraw.Draw(frame).polygon(corners * 2 if len(corners) < 2 else corners, fill=1, outline=1)
    return torch.from_numpy(np.array(frame)).bool()
