"""ACE: the smallest change that a diffusion model lets pass and that flips a classifier."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from attacks.adaptive.gradients import Seeds, Step, trajectory
from attacks.ball import Ball, Images, Linf
from attacks.generative.chain import denoised, fresh
from attacks.losses import Labels, Logits, Losses, cross_entropy
from attacks.pgd import pgd
from diffusion.model import Condition, DiffusionModel
from diffusion.samplers import noised
from diffusion.tape import NoiseTape

Mask = Float[Tensor, "batch 1 height width"]
Classifier = Callable[[Images], Logits]


class Counterfactual(NamedTuple):
    """What ACE returns."""

    images: Images
    """Flipped, and equal to the originals outside `changed`."""
    before: Images
    """The first phase's result, changed everywhere."""
    changed: Mask
    """1 where the second phase was allowed to change the picture."""


@dataclass(frozen=True)
class Ace:
    """Counterfactuals made through a diffusion model (Jeanneret et al., 2023, CVPR, arXiv 2303.09962).

    First a targeted attack on the classifier of the noised and denoised picture, with an L1 penalty: a
    change that the model takes for noise has no effect there. Then whatever changed little is put back while
    the rest is denoised again. Gradients are exact, at the memory of one step; noise is drawn anew at each
    iteration.
    """

    t: int = 50
    """How far into the noise; a twentieth of the schedule in the paper's face models."""
    steps: int = 5
    """Network calls on the way back."""
    iterations: int = 50
    """Of the targeted attack."""
    step_size: float = 1 / 255
    """Of its sign steps."""
    ball: Ball = field(default_factory=lambda: Linf(1.0))
    """What bounds the first phase; nothing, as published."""
    penalty: float = 0.001
    """Weight of the L1 distance to the original, summed over pixels and channels."""
    threshold: float = 0.15
    """The share of the largest change below which a place is put back."""
    dilation: int = 15
    """Side of the square by which places that changed are widened; odd."""
    stochastic: bool = True
    """Whether DDPM's noise is added on the way back."""

    def __call__(
        self,
        model: DiffusionModel,
        classifier: Classifier,
        images: Images,
        targets: Labels,
        *,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[int, Images, Losses], bool | None] | None = None,
    ) -> Counterfactual:
        """Return images that the classifier should take for `targets`.

        Args:
            model: the prior; pixels in the paper.
            classifier: images in [0, 1] to logits.
            images: float [batch, 3, height, width] in [0, 1].
            targets: the classes wanted.
            condition: what the prior is told.
            generator: of the noise.
            callback: as `attacks.pgd` calls it, in the first phase.

        Raises:
            ValueError: for a `t` outside the schedule, more steps than `t`, or an even dilation.
        """
        if self.dilation % 2 == 0:
            raise ValueError(f"the dilation is the odd side of a square; got {self.dilation}")
        model.schedule.lowest(self.t, self.steps)
        images = images.detach()

        def objective(changed: Images) -> Losses:
            seeds = fresh(len(changed), generator)
            seen = trajectory(self._chain(model, seeds, condition), changed)[-1]
            far = (changed - images).abs().flatten(1).sum(1)
            return -cross_entropy(classifier(seen), targets) - self.penalty * far

        before = pgd(
            objective, images, self.ball, steps=self.iterations, step_size=self.step_size, callback=callback
        )
        changed = self.changed(before, images)
        with torch.no_grad():
            seeds = fresh(len(images), generator)
            return Counterfactual(
                self._refined(model, before, images, changed, seeds, condition), before, changed
            )

    def _chain(self, model: DiffusionModel, seeds: Seeds, condition: Condition | None) -> list[Step]:
        return denoised(
            model, seeds, t=self.t, steps=self.steps, stochastic=self.stochastic, condition=condition
        )

    def changed(self, before: Images, images: Images) -> Mask:
        """Return 1 where a picture changed by more than `threshold` of its largest change, widened."""
        change = (before - images).abs().sum(1, keepdim=True)
        share = change / change.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        return (max_pool2d(share, self.dilation, 1, self.dilation // 2) >= self.threshold).to(images)

    def _refined(
        self,
        model: DiffusionModel,
        before: Images,
        images: Images,
        changed: Mask,
        seeds: Seeds,
        condition: Condition | None,
    ) -> Images:
        """Denoise `before` again, putting the original back at each level where it is not `changed`."""
        noise_to, *backs, decode = self._chain(model, seeds, condition)
        kept = model.encode(images)
        noise = NoiseTape(seeds).noise(0, kept)  # the chain's own
        inside = torch.nn.functional.interpolate(changed, size=kept.shape[-2:], mode="area").gt(0).to(kept)
        z_t = noise_to(before, before)
        for t, back in zip(model.schedule.lowest(self.t, self.steps), backs, strict=True):
            z_t = inside * z_t + (1 - inside) * noised(model.schedule, kept, noise, t)
            z_t = back(z_t, before)
        return changed * decode(z_t, before) + (1 - changed) * images
