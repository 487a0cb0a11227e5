"""PhotoGuard, encoder attack (Salman et al., ICML 2023, arXiv 2302.06588): empty the latent, as if the
picture were grey."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks import Objective
from attacks.ball import Images, Losses
from diffusion.model import DiffusionModel
from protect.method import Mask, ProtectionMethod


@dataclass(frozen=True)
class PhotoGuard(ProtectionMethod):
    """Descend the Euclidean norm of the latent mean, with a step that decays linearly to a hundredth.

    The released notebook descends the norm of the unscaled mean; for autoencoders without a shift the
    directions agree.
    """

    paper: ClassVar[str] = "arXiv 2302.06588"

    # The notebook runs 1000 steps from eps 7.65 of 255.
    step_size: float = 2.55 / 255
    """Length of the first step; the last is a hundredth of it."""
    random_start: bool = True
    """Begin at a random point of the ball, as the notebook does."""

    @property
    def needs_denoiser(self) -> bool:
        return False

    def schedule(self, step: int) -> float:
        return self.step_size * (1 - 0.99 * step / max(1, self.steps - 1))

    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        def emptiness(perturbed: Images) -> Losses:
            return -model.encode(perturbed).flatten(1).norm(dim=1)

        return emptiness
