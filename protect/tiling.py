"""Where the tiles of a picture lie that the surrogates look at one by one."""

import math

from imaging.blocks import SIDE
from imaging.tiles import TilePlan, plan_tiles
from protect.ensemble import Models, comfortable, common_multiple


def tiles_for(models: Models, height: int, width: int, *, side: int | None = None) -> TilePlan:
    """Return tiles that every member is comfortable with; neighbours share an eighth, or a block of JPEG.

    Tiles start on the blocks that JPEG will cut the file into, so that what is made for blocks fits them.
    `side` makes them smaller than the members would have them.
    """
    grid = math.lcm(common_multiple(models), SIDE)
    size = max((side or comfortable(models)) // grid, 1) * grid
    overlap = min(math.ceil(size / 8 / grid), size // grid // 2) * grid
    return plan_tiles(height, width, size=size, overlap=overlap, multiple=grid, grid=grid)
