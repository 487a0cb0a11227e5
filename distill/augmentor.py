"""An augmentation whose strengths are learned: how far images are turned, moved, lit and tinted."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.ball import Images

Noise = Float[Tensor, "batch strengths"]

LIMITS = {
    "rotation": 0.5,
    "shift across": 0.25,
    "shift down": 0.25,
    "scale": 0.3,
    "shear": 0.3,
    "brightness": 0.3,
    "contrast": 0.5,
    "saturation": 0.7,
}
"""The greatest standard deviation of each: radians, shares of the side or the range, logarithms."""

_GRAY = (0.299, 0.587, 0.114)


class Augmentor(nn.Module):
    """Draws an affine and a photometric change for each image; strengths are deviations, from 0 to a limit.

    Images in and out are in [0, 1]; what comes from outside of them is the mirrored border.
    """

    strengths: Float[Tensor, " strengths"]
    climbing: Tensor
    """Whether the strengths are being raised, or wait for the student."""
    agreement: Tensor
    """Of student and teacher at the last step."""

    def __init__(self, share: float = 0.1) -> None:
        """Begin at `share` of each limit."""
        super().__init__()
        self.register_buffer("strengths", share * torch.tensor([*LIMITS.values()]))
        self.register_buffer("climbing", torch.tensor(False))
        self.register_buffer("agreement", torch.tensor(0.0))

    def forward(self, images: Images, noise: Noise, strengths: Tensor | None = None) -> Images:
        """Return images changed by standard normal `noise`, differentiable in `strengths`, if not its own."""
        drawn = noise * (self.strengths if strengths is None else strengths)
        turn, across, down, scale, shear, light, contrast, tint = drawn.unbind(1)
        cos, sin, grow = turn.cos(), turn.sin(), scale.exp()
        # grid_sample asks where each pixel comes from, in coordinates from -1 to 1
        rows = [grow * cos, grow * (shear * cos - sin), 2 * across, grow * sin, grow * (shear * sin + cos)]
        matrix = torch.stack([*rows, 2 * down], 1).view(-1, 2, 3)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        light, contrast, tint = (each.view(-1, 1, 1, 1) for each in (light, contrast, tint))
        gray = torch.einsum("c,nchw->nhw", images.new_tensor(_GRAY), moved)[:, None]
        tinted = gray + (moved - gray) * tint.exp()
        middle = tinted.mean((1, 2, 3), keepdim=True)
        return (middle + (tinted - middle) * contrast.exp() + light).clamp(0, 1)

    @torch.no_grad()
    def climb(self, gradient: Float[Tensor, " strengths"], rate: float) -> None:
        """Move each strength by `rate` of its limit towards where the gradient points."""
        limits = self.strengths.new_tensor([*LIMITS.values()])
        moved = self.strengths + rate * limits * gradient.sign()
        self.strengths.copy_(torch.minimum(moved.clamp_min(0), limits))

    @torch.no_grad()
    def decide(self, agreement: Tensor, *, above: float, below: float) -> None:
        """Begin to climb where student and teacher agree on more than `above` of the images, stop where on
        fewer than `below`, and go on as before in between."""
        self.agreement.copy_(agreement)
        self.climbing.copy_((agreement > above) | (self.climbing & (agreement >= below)))


def slope(objective: Callable[[Tensor], Tensor], strengths: Tensor) -> Float[Tensor, " strengths"]:
    """Return the gradient of the mean of an objective in the strengths."""
    strengths = strengths.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(strengths).mean(), strengths)
    return gradient
