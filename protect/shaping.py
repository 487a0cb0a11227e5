"""Perturbations that are seen less: each is made of a free one by a function, and the free one is optimised.

A shape is a map from free perturbations within `eps` to perturbations within `eps`, so that the bound needs
no further care; `ascend` composes it with the objective.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from attacks import Objective, pgd
from attacks.ball import Ball, Images, Losses
from attacks.pgd import Callback, Mask
from imaging.transforms import blur_valid, gaussian_taps

Shape = Literal["none", "luma", "local-contrast", "blurguard"]
Shaping = Callable[[Images], Images]
Planes = Float[Tensor, "batch 1 height width"]

LEAST = 0.25
"""Share of `eps` that a pixel of a flat region keeps under "local-contrast"."""
SIGMAS = (2.0, 1.0, 0.5)
"""Blurs of "blurguard" in pixels, from flat to textured regions."""
_REACH = 2.0
"""Standard deviation in pixels of the window in which contrast is measured."""


def check_shape(shape: str) -> None:
    """Raise ValueError for a word that is no shape."""
    if shape not in get_args(Shape):
        raise ValueError(f"shape is one of {', '.join(get_args(Shape))}; got {shape!r}")


def shaping(shape: Shape, images: Images, eps: float) -> Shaping | None:
    """Return what makes a perturbation of `images` of a free one, both within `eps`; None for "none".

    "luma" changes red, green and blue alike; "local-contrast" changes a pixel by no more than the standard
    deviation around it, though by `LEAST` of `eps`; "blurguard" blurs, the more so the flatter the picture
    is, in the spirit of BlurGuard (NeurIPS 2025), which chooses a blur for each segment and matches spectra.
    """
    match shape:
        case "none":
            return None
        case "luma":
            return lambda free: luma(free, images)
        case "local-contrast":
            # Whole levels of a byte, so that rounding to the file cannot leave the smaller bound.
            radius = (255 * eps * hiding(images, eps).clamp_min(LEAST) + 1e-6).floor() / 255
            return lambda free: free / eps * radius
        case "blurguard":
            weights = _between(hiding(images, eps), len(SIGMAS))
            return lambda free: sum(
                (weight * blurred(free, sigma) for weight, sigma in zip(weights, SIGMAS, strict=True)),
                start=torch.zeros_like(free),
            )


def luma(free: Images, images: Images) -> Images:
    """Return the mean over colours, in each of them, no further than the fullest and the emptiest allow."""
    least, most = -images.amin(1, keepdim=True), 1 - images.amax(1, keepdim=True)
    return free.mean(1, keepdim=True).clamp(least, most).expand_as(images)


def hiding(images: Images, eps: float) -> Planes:
    """Return how much of a change of `eps` the picture hides at each pixel: its local deviation over `eps`,
    at most 1."""
    grey = images.mean(1, keepdim=True)
    grey = grey - grey.mean((2, 3), keepdim=True)  # squares of small numbers lose fewer digits
    variance = blurred(grey.square(), _REACH) - blurred(grey, _REACH).square()
    return (variance.clamp_min(0).sqrt() / eps).clamp_max(1)


def blurred(planes: Images, sigma: float) -> Images:
    """Return a Gaussian blur with the border repeated: a mean, so that no bound on values is left."""
    reach = int(3 * sigma + 0.5)
    taps = gaussian_taps(sigma, 2 * reach + 1).to(planes)
    return blur_valid(pad(planes, (reach,) * 4, mode="replicate"), taps)


def _between(place: Planes, count: int) -> list[Planes]:
    """Return `count` weights that sum to one and fade from the first at 0 to the last at 1, linearly."""
    steps = place * (count - 1)
    return [(1 - (steps - index).abs()).clamp_min(0) for index in range(count)]


def ascend(
    objective: Objective,
    images: Images,
    ball: Ball,
    shape: Shaping | None,
    *,
    mask: Mask | None = None,
    callback: Callback | None = None,
    **how: Any,
) -> Images:
    """Ascend as `attacks.pgd` does, over free perturbations of which `shape` makes those of `images`.

    The free one lives around grey, where the range of a picture does not cut into it. Without a shape this is
    `pgd` itself. `how` is passed on; the mask applies to what is seen.
    """
    if shape is None:
        return pgd(objective, images, ball, mask=mask, callback=callback, **how)
    images = images.detach().to(torch.promote_types(images.dtype, torch.float32))
    grey = torch.full_like(images, 0.5)

    def seen(free: Images) -> Images:
        delta = shape(free - grey)
        return (images + (delta if mask is None else delta * mask)).clamp(0, 1)

    def tell(step: int, free: Images, losses: Losses) -> bool | None:
        return None if callback is None else callback(step, seen(free), losses)

    return seen(pgd(lambda free: objective(seen(free)), grey, ball, callback=tell, **how))
