"""The purifier: a randomised layer from images to images that goes in front of any classifier.

A purifier is a chain of moves. A move is a function of the state it is handed, of the images that came in,
and of noise from a tape; so a chain can be run plainly, replayed step by step for exact gradients, or
repeated on equal noise. `nn.Sequential(purifier, classifier)` is the whole integration.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.tape import NoiseTape, Seeds

Images = Float[Tensor, "batch channels height width"]
State = Tensor


class Draw(Protocol):
    """Deals Gaussian noise in the shape of `like`, the same at each call; `part` 1, 2, … deals more."""

    def __call__(self, like: Tensor, part: int = 0) -> Tensor: ...


Move = Callable[[State, Images, Draw], State]
Step = Callable[[State, Images], State]
"""A move whose noise is settled."""

ROUNDING = 1e-3
"""How far from [0, 1] images may lie, as attack libraries' arithmetic leaves them."""


class Purifier(nn.Module, ABC):
    """Images in [0, 1] in, images in [0, 1] out, of any float dtype; random unless seeded.

    Differentiable as it is; `attacks.adaptive.Exact` gives the same gradient at constant graph memory. Each
    call draws fresh noise from torch's global generator, for each image by itself, unless `seeds` are given
    or the purifier is a `seeded` copy. Parameters are frozen and stay in evaluation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seed: int | None = None

    @abstractmethod
    def moves(self) -> Sequence[Move]:
        """Return the chain. The state starts as the images and ends as the purified ones."""

    def check(self, images: Images) -> None:
        """Raise ValueError unless images are float, batched, and in [0, 1]."""
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(
                "a purifier takes float images [batch, channels, height, width] in [0, 1]; "
                f"got {str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
            )
        if not images.numel():
            return
        low, high = (float(value) for value in images.detach().aminmax())
        if low < -ROUNDING or high > 1 + ROUNDING or low != low:
            raise ValueError(
                f"a purifier takes images in [0, 1]; got {low:.4g} to {high:.4g}{_remedy(low, high)}"
            )

    def chain(self, seeds: Seeds) -> list[Step]:
        """Return the moves with their noise taken from a tape of these seeds: pure functions."""
        tape = NoiseTape(seeds)
        return [partial(_step, move, partial(tape.noise, number)) for number, move in enumerate(self.moves())]

    def draw_seeds(self, batch: int, generator: torch.Generator | None = None) -> Seeds:
        """Return one seed per image: the fixed one of a seeded copy, else new ones."""
        if self._seed is not None:
            return torch.full((batch,), self._seed)
        return NoiseTape.fresh(batch, generator).seeds

    def forward(self, images: Images, seeds: Seeds | None = None) -> Images:
        """Return purified images.

        Raises ValueError for images of another range or shape, and for seeds that are not one per image.
        """
        self.check(images)
        state = images
        for step in self.chain(self.draw_seeds(len(images)) if seeds is None else seeds):
            state = step(state, images)
        return state

    def seeded(self, seed: int) -> Self:
        """Return a copy, sharing all weights, that deals every image the same noise at each call."""
        twin = copy.copy(self)
        twin._seed = seed
        return twin


def _step(move: Move, draw: Draw, state: State, images: Images) -> State:
    return move(state, images, draw)


def _remedy(low: float, high: float) -> str:
    if high > 2:
        return ": divide bytes by 255"
    if low < 0:
        return ": normalisation belongs inside the classifier; map [-1, 1] with (images + 1) / 2"
    return ""
