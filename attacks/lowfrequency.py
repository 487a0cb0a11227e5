"""LF: smooth a picture by learned filters until a purifier has nothing left to remove.

A norm-bounded perturbation is mostly of high frequency, and purification removes just that. LF (Kassis et
al., 2025, NeurIPS, arXiv 2411.16598) moves low frequencies, under a perceptual bound instead of a norm.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, unfold

from attacks.ball import Images
from attacks.losses import Losses
from attacks.objectives import Objective, require_graph

SIZES = (5, 7, 5, 3)
COLOUR = 0.1
"""Deviation, in [0, 1], within which neighbours count as of one colour."""
IDENTITY = 0.2
"""Deviation in pixels of the Gaussian that filters start from: almost no blur."""

Logits = Float[Tensor, "batch quadrant height width"]
Distance = Callable[[Images, Images], Losses]


class Filter:
    """A kernel for every pixel, mirrored from one learned quadrant and weighed by likeness of colour."""

    def __init__(self, guide: Images, size: int) -> None:
        reach, (batch, _, height, width) = size // 2, guide.shape
        self.size, self.reach = size, reach
        offsets = torch.arange(-reach, reach + 1, device=guide.device)
        rows, columns = (axis.flatten() for axis in torch.meshgrid(offsets, offsets, indexing="ij"))
        self.quadrant = rows.abs() * (reach + 1) + columns.abs()
        windows = self._windows(guide)
        apart = (windows - guide[:, :, None]).abs().sum(1)
        self.likeness = torch.exp(-(apart**2) / (2 * COLOUR**2))
        corner = torch.arange(reach + 1, device=guide.device, dtype=guide.dtype) ** 2
        start = -(corner[:, None] + corner[None]).flatten() / (2 * IDENTITY**2)
        self.logits: Logits = start.view(1, -1, 1, 1).repeat(batch, 1, height, width).requires_grad_()

    def __call__(self, images: Images) -> Images:
        weights = self.logits[:, self.quadrant].softmax(1) * self.likeness
        weights = weights / weights.sum(1, keepdim=True)
        return (self._windows(images) * weights[:, None]).sum(2)

    def _windows(self, images: Images) -> Float[Tensor, "batch channels taps height width"]:
        batch, channels, height, width = images.shape
        taps = unfold(pad(images, (self.reach,) * 4, mode="reflect"), self.size)
        return taps.view(batch, channels, self.size**2, height, width)


def low_frequency(
    objective: Objective,
    images: Images,
    distance: Distance,
    *,
    bound: float = 0.05,
    steps: int = 100,
    penalty: float = 1e8,
    filter_rate: float = 0.05,
    rate: float = 0.008,
) -> Images:
    """Maximise `objective` over filtered pictures within a perceptual distance of the originals.

    The bound is no norm: report L-infinity and L2 beside it. Against a purifier pass `Expected` with as many
    draws as can be had; the paper takes 128 on CIFAR-10 and 16 on ImageNet.

    Args:
        objective: one score per image; the margin in the paper.
        images: float [batch, 3, height, width] in [0, 1].
        distance: perceptual, one value per image of a pair of batches; LPIPS in the paper.
        bound: its largest value.
        steps: of Adam.
        penalty: weight of what exceeds the bound; 1e8 on CIFAR-10 and 1e4 on ImageNet in the paper.
        filter_rate: Adam's rate for the filters.
        rate: Adam's rate for the change added before them.

    Returns:
        For each image the point of highest score among those within the bound, the original if there is none.
    """
    original = images.detach()
    filters = [Filter(original, size) for size in SIZES]
    added = torch.zeros_like(original, requires_grad=True)
    groups = [{"params": [one.logits for one in filters], "lr": filter_rate}, {"params": [added], "lr": rate}]
    adam = torch.optim.Adam(groups)
    best, best_scores = original.clone(), original.new_full((len(original),), -torch.inf)
    for _ in range(steps):
        with torch.enable_grad():
            made = original + added
            for one in filters:
                made = one(made)
            made = made.clamp(0, 1)
            scores, apart = objective(made), distance(original, made)
            require_graph(scores)
            loss = (penalty * (apart - bound).clamp_min(0) - scores).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        better = (apart <= bound) & (scores > best_scores)
        best = torch.where(better.view(-1, 1, 1, 1), made.detach(), best)
        best_scores = torch.where(better, scores.detach(), best_scores)
    return best
