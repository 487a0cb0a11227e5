"""The Monte-Carlo draws that methods share."""

import math
from collections.abc import Callable

import torch

from diffusion.model import DiffusionModel, Latents, Timesteps
from diffusion.tape import NoiseTape


def draw_noise(
    model: DiffusionModel, z: Latents, generator: torch.Generator | None
) -> tuple[Timesteps, Latents]:
    """A time, uniform over the schedule, and Gaussian noise: one draw for the batch, expanded to every
    picture of it."""
    device = z.device if generator is None else generator.device
    t = torch.randint(len(model.schedule), (1,), generator=generator, device=device)
    noise = torch.randn((1, *z.shape[1:]), generator=generator, device=device)
    return t.to(z.device).expand(len(z)), noise.to(z).expand_as(z)


def first_latent(model: DiffusionModel, told: Latents, t: int, generator: torch.Generator | None) -> Latents:
    """What a sampler that starts at `t` starts from: noise as strong as a noised latent is there.

    One draw for the batch. `told` holds the channels of `DiffusionModel.inpainting`, of the latent's size.
    Where alpha^2 + sigma^2 is 1 it is Gaussian noise of deviation 1, which samplers of another convention
    scale to be that before the network sees it.
    """
    device = told.device if generator is None else generator.device
    shape = (1, model.latent_channels, *told.shape[-2:])
    noise = torch.randn(shape, generator=generator, device=device).to(told)
    return (noise * math.hypot(*model.schedule.level(t))).expand(len(told), *shape[1:])


def repeatable(generator: torch.Generator | None) -> Callable[[], torch.Generator]:
    """A maker of generators that deal the same draws: each picture of a batch gets one, and none depends on
    how much the others drew."""
    seed = int(NoiseTape.fresh(1, generator).seeds)
    return lambda: torch.Generator().manual_seed(seed)
