"""DiffusionGuard (Choi et al., ICLR 2025, arXiv 2410.05694): make an inpainting model's first step go wrong,
when it decides on the layout.

The thief keeps the white part of the mask, a face, say, and has the rest repainted. The model sees the kept
pixels through the masked picture's latent alone, so the gradient takes that way.
"""

from dataclasses import dataclass, replace
from itertools import cycle
from typing import ClassVar

import torch

from attacks import Objective, with_gradient
from attacks.ball import Images, Losses
from diffusion.losses import split_gradient
from diffusion.model import DiffusionModel, Latents
from protect.masks import shrunk
from protect.method import Mask, ProtectionMethod
from protect.methods.draws import first_latent


@dataclass(frozen=True)
class DiffusionGuard(ProtectionMethod):
    """Ascend the Euclidean norm of the noise that the model predicts at its first step, from fresh noise."""

    paper: ClassVar[str] = "arXiv 2410.05694"

    # A quarter of the paper's, which were taken on a GPU: a processor has to bear them too.
    steps: int = 200
    """Number of ascent steps; 800 in the paper."""
    step_size: float = 0.5 / 255
    """Length of one step, in units of the full range."""
    prompt: str = ""
    """Caption under which the model sees the picture; none in the paper."""
    timesteps: tuple[int, ...] = (751,)
    """The editor's first timestep, or several, taken in turn: 751 for 4 sampling steps, 981 for 50."""
    augment: bool = True
    """Shrink the mask at random in each step, as a thief's will be another."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.timesteps or min(self.timesteps) < 0:
            raise ValueError(f"timesteps are one or more numbers from 0 up; got {self.timesteps or 'none'}")

    @property
    def needs_inpainting(self) -> bool:
        return True

    @property
    def needs_mask(self) -> bool:
        return True

    def check(self, model: DiffusionModel) -> None:
        super().check(model)
        if max(self.timesteps) >= len(model.schedule):
            raise ValueError(
                f"{model.name} has timesteps from 0 to {len(model.schedule) - 1}; got {max(self.timesteps)}"
            )

    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        assert mask is not None
        condition, timesteps = model.condition([self.prompt]), cycle(self.timesteps)
        owned = (mask >= 0.5).cpu()  # contours are followed there

        def first_step(perturbed: Images) -> Losses:
            kept = shrunk(owned, generator=generator) if self.augment else owned
            repainted = 1 - kept.to(perturbed)
            with torch.no_grad():
                told = model.inpainting(condition, perturbed, repainted)
            assert told.concat is not None
            t = next(timesteps)
            z_t = first_latent(model, told.concat, t, generator)

            def strength(seen: Latents) -> Losses:
                times = torch.full((len(seen),), t, device=seen.device)
                return model.predict_noise(z_t, times, replace(told, concat=seen)).flatten(1).norm(dim=1)

            # Split chain rule: the denoiser's graph is freed before the encoder's is built.
            value, gradient = split_gradient(strength, told.concat)
            seen = model.inpainting(condition, perturbed, repainted).concat
            assert seen is not None
            return with_gradient(seen, gradient, value)

        return first_step
