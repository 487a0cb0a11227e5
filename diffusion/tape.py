"""Noise that can be played again: one seed per element of a batch, and a number per draw.

A randomised chain that takes its noise from a tape is a plain function of its input, so it can be replayed
for exact gradients, compared on equal noise, and resumed. What an element is dealt depends on its own seed
and on the number of the draw alone, whatever the batch around it and the device.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from diffusion.schedule import Latents

Seeds = Int[Tensor, " batch"]

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class NoiseTape:
    """Gaussian noise by number. `seeds` hold one integer for each element of the batch."""

    seeds: Seeds

    @classmethod
    def fresh(cls, batch: int, generator: torch.Generator | None = None) -> "NoiseTape":
        """Return a tape of new seeds, from `generator` or from torch's global one."""
        device = None if generator is None else generator.device
        return cls(torch.randint(2**62, (batch,), generator=generator, device=device).cpu())

    def noise(self, number: int, like: Latents, part: int = 0) -> Latents:
        """Return draw `number` for each element, in the shape, dtype and place of `like`.

        `part` tells apart several draws under one number.

        Raises ValueError if the tape holds another number of elements than `like`.
        """
        seeds = self.seeds.tolist()
        if len(seeds) != len(like):
            raise ValueError(f"the tape holds {len(seeds)} seeds; got a batch of {len(like)}")
        shared = len(set(seeds)) == 1
        generator, shape = torch.Generator(), like.shape[1:]
        rows = [
            torch.randn(shape, generator=generator.manual_seed(_mixed(seed, number + (part << 32))))
            for seed in (seeds[:1] if shared else seeds)
        ]
        return torch.stack(rows).to(like).expand_as(like)


def _mixed(seed: int, number: int) -> int:
    """SplitMix64 (Steele et al., 2014, OOPSLA): neighbouring seeds and numbers give unrelated streams."""
    state = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return (state ^ (state >> 31)) & (_MASK >> 1)
