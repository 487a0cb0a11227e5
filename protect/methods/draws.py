"""The Monte-Carlo draw that denoising losses share."""

import torch

from diffusion.model import DiffusionModel, Latents, Timesteps


def draw_noise(
    model: DiffusionModel, z: Latents, generator: torch.Generator | None
) -> tuple[Timesteps, Latents]:
    """A time, uniform over the schedule, and Gaussian noise: one draw for the batch, expanded to every
    picture of it."""
    device = z.device if generator is None else generator.device
    t = torch.randint(len(model.schedule), (1,), generator=generator, device=device)
    noise = torch.randn((1, *z.shape[1:]), generator=generator, device=device)
    return t.to(z.device).expand(len(z)), noise.to(z).expand_as(z)
