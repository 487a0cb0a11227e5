"""What a method that asks no model is given in the place of one."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import nn

from diffusion.model import Condition, NoDenoiserError, PixelSpace
from diffusion.schedule import Latents, NoiseSchedule, Timesteps
from protect.generator import PERIOD


class StandIn(PixelSpace):
    """No model: a device for the work, and the size of the tiles that large pictures are cut into."""

    has_denoiser = False

    def __init__(self) -> None:
        super().__init__(
            NoiseSchedule.linear(),
            prediction="epsilon",
            name="no model",
            multiple=PERIOD,  # so that all tiles of a picture see one texture
            latent_channels=3,
            comfortable=1024,
        )
        self.register_buffer("place", torch.empty(0), persistent=False)
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        raise NoDenoiserError("nothing was loaded: the method has a network of its own")

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> NoReturn:
        raise NoDenoiserError("nothing was loaded: the method has a network of its own")

    def condition(self, prompts: Sequence[str]) -> Condition:
        return Condition()
