"""AdvDM (Liang et al., ICML 2023, arXiv 2302.04578): move the picture to where the denoiser is wrong."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from attacks import Objective, with_gradient
from attacks.ball import Images, Losses
from diffusion.losses import denoising_loss, split_gradient
from diffusion.model import DiffusionModel
from protect.method import Mask, ProtectionMethod
from protect.methods.draws import draw_noise


@dataclass(frozen=True)
class AdvDM(ProtectionMethod):
    """Ascend the denoising loss at one random time and noise per step; descend it with `direction=-1`."""

    paper: ClassVar[str] = "arXiv 2302.04578"

    prompt: str = "a painting"
    """Caption under which the model sees the picture; a thief's will differ."""
    random_start: bool = True
    """Begin at a random point of the ball, as the released code does."""
    direction: Literal[1, -1] = 1
    """1 makes the picture hard to denoise; -1 makes it too easy, AdvDM(-) of the SDS paper."""

    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        condition = model.condition([self.prompt])

        def difficulty(perturbed: Images) -> Losses:
            with torch.no_grad():
                z = model.encode(perturbed)
            t, noise = draw_noise(model, z, generator)
            # Split chain rule: the denoiser's graph is freed before the encoder's is built.
            loss, gradient = split_gradient(lambda leaf: denoising_loss(model, leaf, noise, t, condition), z)
            return with_gradient(model.encode(perturbed), self.direction * gradient, self.direction * loss)

        return difficulty
