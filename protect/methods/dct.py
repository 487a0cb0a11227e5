"""A perturbation on the lattice of JPEG's own coefficients, in the spirit of DCT-Shield (ICCV 2025).

JPEG rounds each coefficient of each block of eight by eight pixels to a multiple of a step that grows with
the frequency. A change of brightness whose coefficients are such multiples passes the rounding as it is:
`JPEG(x + delta) = JPEG(x) + delta`, up to the rounding of pixels, at that quality and on that grid.

DCT-Shield moves the quantised coefficients of the picture, colours included, by a step of theirs, and bounds
that; its code is not public. Here the bound is on pixels as everywhere, and the coefficients of the change,
not those of the picture, are the multiples.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks import Objective
from attacks.ball import Images
from diffusion.model import DiffusionModel
from imaging.blocks import dct, from_blocks, inverse_dct, to_blocks
from imaging.transforms import quantisation_steps
from protect.method import Mask, ProtectionMethod
from protect.methods.photoguard import PhotoGuard
from protect.shaping import Shaping

_SHARES = torch.linspace(0.1, 1, 10).tolist()
"""How far a block's wish is followed: the last of these that stays in the bound, or not at all."""
_ROUNDING = 1e-6
"""Of floats, which must not cost a block that touches the bound."""


@dataclass(frozen=True)
class DctLattice(ProtectionMethod):
    """Empty the latent, as PhotoGuard does, by a change that JPEG of one quality leaves alone."""

    paper: ClassVar[str] = "in the spirit of DCT-Shield (ICCV 2025)"

    step_size: float = 2.55 / 255
    """Length of the first step, of the free perturbation; the last is a hundredth of it."""
    random_start: bool = True
    """Begin at a random point of the ball."""
    quality: int = 75
    """Of the JPEG that leaves the change alone, 1 to 100; better ones keep most of it, worse ones less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.quality <= 100:
            raise ValueError(f"a JPEG quality is a number from 1 to 100; got {self.quality}")
        if self.shape != "none":
            raise ValueError(f"dct-lattice has a shape of its own and takes no other; got {self.shape}")

    @property
    def needs_denoiser(self) -> bool:
        return False

    def schedule(self, step: int) -> float:
        return self._encoder_attack.schedule(step)

    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        return self._encoder_attack.objective(model, images, target=target, mask=mask, generator=generator)

    @property
    def _encoder_attack(self) -> PhotoGuard:
        return PhotoGuard(steps=self.steps, step_size=self.step_size)

    def shaping(self, images: Images) -> Shaping:
        return lambda free: lattice(free, images, eps=self.eps, quality=self.quality)

    def settle(self, delta: Images, images: Images) -> Images:
        # A blend of two points of the lattice is none; untouched pixels, as those off a mask, stay so.
        return torch.where(delta != 0, self.shaping(images)(delta), delta)


def lattice(free: Images, images: Images, *, eps: float, quality: int) -> Images:
    """Return a change of brightness near that of `free` that JPEG of `quality` leaves alone.

    Each block's coefficients are rounded to whole steps. A block that then left `eps`, or the range of its
    pixels, wishes for less until it does not. Gradients pass straight through (Bengio et al., 2013, arXiv
    1308.3432), weaker in proportion where steps are longer, so that frequencies which seldom reach a whole
    step do not drown the others. Blocks begin at the top left corner; those cut by the right or lower edge,
    or by a mask, keep less.
    """
    brightness = free.mean(1, keepdim=True)
    with torch.no_grad():
        steps = quantisation_steps(quality, images)[0] / 255
        wish = dct(to_blocks(brightness)) / steps
        least = to_blocks(-images.amin(1, keepdim=True).clamp_max(eps)) - _ROUNDING
        most = to_blocks((1 - images.amax(1, keepdim=True)).clamp_max(eps)) + _ROUNDING
        found = torch.zeros_like(wish)
        for share in _SHARES:
            made = inverse_dct((share * wish).round() * steps)
            fits = ((made >= least) & (made <= most)).all(-1, keepdim=True).all(-2, keepdim=True)
            found = torch.where(fits, made, found)
        change = from_blocks(found, *images.shape[-2:])
    followed = from_blocks(inverse_dct(dct(to_blocks(brightness)) * steps.min() / steps), *change.shape[-2:])
    return (followed + (change - followed).detach()).expand_as(images)
