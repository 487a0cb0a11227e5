"""Moving what a network sees, under views drawn at random, so that networks that were not attacked see it
moved, too.

A displacement has no gradient at the picture itself: begin elsewhere, at random or with `Begun`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from attacks.ball import Ball, Images
from attacks.losses import Losses
from attacks.objectives import Objective, Transform

Seen = Float[Tensor, "batch channels h w"]
View = Float[Tensor, "batch channels view_height view_width"]


def displacement(
    see: Callable[[View], Seen], images: Images, views: Callable[[], Callable[[Images], View]]
) -> Objective:
    """Return how far what is seen has moved, over the length of what is seen of `images`.

    Both are seen through one view, drawn anew at each call: input diversity (Xie et al., CVPR 2019, arXiv
    1803.06978), here without a change of what the distance is taken to.
    """

    def moved(perturbed: Images) -> Losses:
        view = views()
        with torch.no_grad():
            before = _rows(see(view(images)))
        return (_rows(see(view(perturbed))) - before).norm(dim=1) / before.norm(dim=1)

    return moved


def _rows(seen: Seen) -> Float[Tensor, "batch entries"]:
    return seen.flatten(1).to(torch.promote_types(seen.dtype, torch.float32))


def rescaled(smallest: float, *, multiple: int, generator: torch.Generator | None) -> Callable[[], Transform]:
    """Return what draws a view: the picture at a scale from `smallest` to 1, sides rounded to `multiple`.

    One draw serves a batch.

    Raises ValueError unless the smallest scale is above 0 and at most 1.
    """
    if not 0 < smallest <= 1:
        raise ValueError(f"the smallest scale lies above 0 and is at most 1; got {smallest:g}")

    def draw() -> Transform:
        device = "cpu" if generator is None else generator.device
        scale = 1 - (1 - smallest) * torch.rand((), generator=generator, device=device).item()

        def view(images: Images) -> View:
            size = [max(1, round(side * scale / multiple)) * multiple for side in images.shape[-2:]]
            return interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)

        return view

    return draw


@dataclass(frozen=True)
class Begun:
    """A ball in which an attack begins at a pattern of full values, the same for every image."""

    ball: Ball
    pattern: Callable[[int, int], Float[Tensor, "height width"]]
    """Returns a perturbation of a height and width, for all channels."""

    def random_start(self, images: Images, generator: torch.Generator | None) -> Images:
        pattern = self.pattern(*images.shape[-2:]).to(images)
        return self.ball.project(pattern.expand_as(images))

    def steepest(self, gradient: Images) -> Images:
        return self.ball.steepest(gradient)

    def project(self, delta: Images) -> Images:
        return self.ball.project(delta)

    def distance(self, delta: Images) -> Losses:
        return self.ball.distance(delta)
