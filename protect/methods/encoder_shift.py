"""Encoder shift: move what encoders say at half the picture's size, under random rescaling, so that encoders
that were not attacked are moved, too.

Ours, put together from measurements (docs/methods/ensembles.md); best with several models.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks import Objective
from attacks.ball import Ball, Images, Linf
from attacks.displacement import Begun, displacement, rescaled
from diffusion.features import seen_at
from diffusion.model import DiffusionModel
from protect.method import Mask, ProtectionMethod
from protect.targets import checkerboard


@dataclass(frozen=True)
class EncoderShift(ProtectionMethod):
    """Ascend the relative distance that an early layer of the encoder has moved, at a scale drawn anew for
    each step and each model.

    Late layers and the latent itself are where encoders differ: what moves them does not move another's. A
    displacement has no gradient at the picture, so the ascent begins at a faint checkerboard, which moves the
    encoder that is otherwise met least (TAEF1 of those measured).
    """

    paper: ClassVar[str] = "ours; input diversity: arXiv 1803.06978"

    steps: int = 20
    """Number of ascent steps; more than these do not carry over better."""
    step_size: float = 1.5 / 255
    """Length of one step, in units of the full range."""
    random_start: bool = True
    """Begin away from the picture; must be true."""
    checks: float = 0.5
    """Strength of the checkerboard to begin at, as a share of `eps`; 0 begins at a random point."""
    smallest: float = 0.5
    """Smallest scale at which a step may see the picture; 1 is always its own."""
    scale: int = 1
    """Which scale of the encoder is moved: 0 of the picture's size, 1 of half of it, …; a large number is the
    latent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.random_start:
            raise ValueError("at the picture itself a shift has no gradient: leave random start on")
        if not 0 <= self.checks <= 1:
            raise ValueError(f"checks is a share from 0 to 1; got {self.checks:g}")
        if not 0 < self.smallest <= 1:
            raise ValueError(f"the smallest scale lies above 0 and is at most 1; got {self.smallest:g}")
        if self.scale < 0:
            raise ValueError(f"scale counts from 0, the picture's own size; got {self.scale}")

    @property
    def needs_denoiser(self) -> bool:
        return False

    @property
    def ball(self) -> Ball:
        ball, strength = Linf(self.eps), self.checks * self.eps
        return Begun(ball, lambda *size: strength * checkerboard(*size)) if strength else ball

    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        smallest = 1.0 if model.fixed_size else self.smallest
        return displacement(
            lambda view: seen_at(model, view, self.scale),
            images,
            rescaled(smallest, multiple=model.multiple, generator=generator),
        )
