"""Random numbers of a training step that do not depend on how its batch is split over processes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def generator_of(*numbers: int) -> torch.Generator:
    """Return a generator of its own for each sequence of non-negative numbers, such as a seed and a step."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed))


@dataclass(frozen=True)
class Draws:
    """Process `rank` of `world` holds images rank, rank + world, … of the batch, and gets their draws.

    Unlike attacks that judge, which share one draw for the whole batch, training draws for each image, as
    the papers do: a start that all images share would be one the network can learn.
    """

    generator: torch.Generator
    rank: int = 0
    world: int = 1

    def uniform(self, like: Tensor) -> Tensor:
        """Draw from [-1, 1], in the shape of `like`."""
        return 2 * self._draw(torch.rand, like) - 1

    def normal(self, like: Tensor) -> Tensor:
        """Draw from the standard normal distribution, in the shape of `like`."""
        return self._draw(torch.randn, like)

    def beta(self, concentration: float) -> float:
        """Draw one number from Beta(concentration, concentration), the same for all processes."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return float(np.random.default_rng(seed).beta(concentration, concentration))

    def _draw(self, draw: Callable[..., Tensor], like: Tensor) -> Tensor:
        shape, device = (self.world * len(like), *like.shape[1:]), self.generator.device
        return draw(shape, generator=self.generator, device=device)[self.rank :: self.world].to(like)
