"""Mist (Liang and Wu, 2023, arXiv 2305.12683): pull the latent towards a texture and make it hard to
denoise."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks import Objective, with_gradient
from attacks.ball import Images, Losses
from diffusion.losses import denoising_loss, split_gradient
from diffusion.model import DiffusionModel, Latents
from protect.method import Mask, ProtectionMethod
from protect.methods.draws import draw_noise


@dataclass(frozen=True)
class Mist(ProtectionMethod):
    """Ascend `semantic_weight` · denoising loss - `textural_weight` · mean squared distance to the target's
    latent.

    The paper sums the squared distance over the 16384 latent entries of a 512 px picture and weighs the
    denoising loss, a mean, with 10^4. Written as two means the ratio is 10^4/16384 and holds at every size.
    """

    paper: ClassVar[str] = "arXiv 2305.12683"

    prompt: str = "a painting"
    """Caption under which the model sees the picture; a thief's will differ."""
    random_start: bool = True
    """Begin at a random point of the ball, as the released code does."""
    textural_weight: float = 1.0
    """Pull towards the target's latent; 0 leaves the semantic half."""
    semantic_weight: float = 1e4 / 16384
    """Push up the denoising loss; 0 leaves the textural half, which needs no denoiser."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            min(self.textural_weight, self.semantic_weight) < 0
            or not self.textural_weight + self.semantic_weight
        ):
            raise ValueError("Mist's weights must not be negative and not both 0")

    @property
    def needs_denoiser(self) -> bool:
        return self.semantic_weight > 0

    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        with torch.no_grad():
            z_target = model.encode(target)
        condition = model.condition([self.prompt]) if self.needs_denoiser else None

        def textural(z: Latents) -> Losses:
            return -self.textural_weight * (z - z_target).square().flatten(1).mean(1)

        def fused(perturbed: Images) -> Losses:
            with torch.no_grad():
                z = model.encode(perturbed)
            t, noise = draw_noise(model, z, generator)
            score, gradient = split_gradient(
                lambda leaf: (
                    self.semantic_weight * denoising_loss(model, leaf, noise, t, condition) + textural(leaf)
                ),
                z,
            )
            return with_gradient(model.encode(perturbed), gradient, score)

        return fused if self.needs_denoiser else lambda perturbed: textural(model.encode(perturbed))
