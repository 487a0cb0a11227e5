"""Purifiers for pictures of another size than the prior's: resize the whole, or go tile by tile."""

from functools import partial

import torch
from torch.nn.functional import interpolate

from diffusion.model import DiffusionModel
from imaging.tiles import merge, plan_tiles, split
from purify.diffpure import DiffPure
from purify.purifier import Draw, Images, Move, Purifier, State


class Resized(Purifier):
    """Bring images to `side` by `side`, purify them, and bring them back, both bilinearly.

    The field's way to put a 256 pixel prior before a 224 pixel classifier.
    """

    def __init__(self, purifier: Purifier, side: int) -> None:
        super().__init__()
        if side < 1:
            raise ValueError(f"the side must be positive; got {side}")
        self.purifier, self.side = purifier, side

    def moves(self) -> list[Move]:
        return [self._there, *(partial(self._inside, move) for move in self.purifier.moves()), self._back]

    def _there(self, state: State, images: Images, draw: Draw) -> State:
        return interpolate(state, size=(self.side, self.side), mode="bilinear", align_corners=False)

    def _inside(self, move: Move, state: State, images: Images, draw: Draw) -> State:
        return move(state, self._there(images, images, draw), draw)

    def _back(self, state: State, images: Images, draw: Draw) -> State:
        return interpolate(state, size=images.shape[-2:], mode="bilinear", align_corners=False)


class Tiled(Purifier):
    """Purify overlapping tiles, blend them, and repeat: GrIDPure (Zhao et al., 2024, arXiv 2312.00084).

    Each round keeps a share `kept` of the picture before it. The paper's setting is 20 rounds of DiffPure at
    `t = 10` on 256 pixel tiles that overlap by half, with 0.1 kept. Tiles fade into each other by a raised
    cosine, where the released code averages them.
    """

    def __init__(
        self, purifier: Purifier, *, size: int = 256, overlap: int = 128, rounds: int = 20, kept: float = 0.1
    ) -> None:
        super().__init__()
        if rounds < 1 or not 0 <= kept < 1:
            raise ValueError(f"rounds must be at least 1 and kept in [0, 1); got {rounds} and {kept}")
        self.purifier, self.size, self.overlap = purifier, size, overlap
        self.rounds, self.kept = rounds, kept

    def moves(self) -> list[Move]:
        return [self._round] * self.rounds

    def _round(self, state: Images, images: Images, draw: Draw) -> Images:
        # a whole round is one move, whose graph is one tile's when no gradient is wanted
        plan = plan_tiles(*state.shape[-2:], size=self.size, overlap=self.overlap)
        tiles = (self._tile(tile, index, draw) for index, tile in enumerate(split(state, plan)))
        merged = merge(tiles, plan, device=state.device)
        return torch.lerp(merged, state, self.kept) if self.kept else merged

    def _tile(self, tile: Images, index: int, draw: Draw) -> Images:
        state = tile
        chain = self.purifier.moves()
        for number, move in enumerate(chain):
            state = move(state, tile, _Numbered(draw, (index * len(chain) + number) * 4))
        return state


class GridPure(Tiled):
    """`Tiled` with GrIDPure's settings, any of which can be changed (Zhao et al., 2024, arXiv 2312.00084)."""

    def __init__(
        self,
        model: DiffusionModel,
        *,
        t: int = 10,
        steps: int | None = None,
        rounds: int = 20,
        kept: float = 0.1,
        sampler: str = "ddpm",
    ) -> None:
        side = min(256, model.comfortable)
        size = side // model.multiple * model.multiple
        pure = DiffPure(model, t=t, steps=steps, sampler=sampler)
        super().__init__(pure, size=size, overlap=size // 2, rounds=rounds, kept=kept)


class _Numbered:
    """Noise of one move inside a larger one."""

    def __init__(self, draw: Draw, first: int) -> None:
        self._draw, self._first = draw, first

    def __call__(self, like: torch.Tensor, part: int = 0) -> torch.Tensor:
        return self._draw(like, self._first + part)
