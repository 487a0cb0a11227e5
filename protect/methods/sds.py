"""Score distillation against mimicry (Xue et al., ICLR 2024, arXiv 2311.12832): the encoder is the weak part,
so attack it.

The denoiser runs forward only. Its residual at the noised latent, predict - target, stands in for the
gradient of the denoising loss, and the encoder's Jacobian carries it to the pixels.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from attacks import Objective, with_gradient
from attacks.ball import Images, Losses
from diffusion.losses import score_gradient
from diffusion.model import DiffusionModel
from protect.method import Mask, ProtectionMethod
from protect.methods.draws import draw_noise


@dataclass(frozen=True)
class SDS(ProtectionMethod):
    """Follow the score residual down (the paper's recommendation, blurred edits) or, with `direction=1`,
    up."""

    paper: ClassVar[str] = "arXiv 2311.12832"

    direction: Literal[1, -1] = -1
    """-1 makes the picture too easy to denoise, 1 too hard."""

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

        def distilled(perturbed: Images) -> Losses:
            z = model.encode(perturbed)
            t, noise = draw_noise(model, z, generator)
            residual = score_gradient(model, z, noise, t, condition)
            value = residual.square().flatten(1).mean(1)
            return with_gradient(z, self.direction * residual, self.direction * value)

        return distilled


@dataclass(frozen=True)
class SDST(ProtectionMethod):
    """SDS plus a pull towards the latent of a target texture, both on one shared encoding."""

    paper: ClassVar[str] = "arXiv 2311.12832"

    direction: Literal[1, -1] = -1
    """-1 makes the picture too easy to denoise, 1 too hard."""
    score_weight: float = 5.0
    """Weight of the score residual against the squared distance to the target, both summed over the
    latent."""

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
        with torch.no_grad():
            z_target = model.encode(target)

        def distilled(perturbed: Images) -> Losses:
            z = model.encode(perturbed)
            t, noise = draw_noise(model, z, generator)
            residual = score_gradient(model, z, noise, t, condition)
            offset = z.detach() - z_target
            gradient = self.direction * self.score_weight * residual - 2 * offset
            return with_gradient(z, gradient, -offset.square().flatten(1).sum(1))

        return distilled
