"""Triggers of classifiers, on images in [0, 1], and training sets that are poisoned with them.

A trigger goes onto pictures before any normalisation and after any resizing, the same in training and test.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from attacks.ball import Images

Labels = Int[Tensor, " batch"]
Trigger = Callable[[Images], Images]


@dataclass(frozen=True)
class Patch:
    """BadNets (Gu et al., 2017, arXiv 1708.06733): a square of `value`, `margin` pixels from the lower right
    corner."""

    size: int = 3
    margin: int = 0
    value: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.size, int) and isinstance(self.margin, int)):
            raise ValueError(f"size and margin of a patch are whole pixels; got {self.size}, {self.margin}")
        if self.size < 1 or self.margin < 0:
            raise ValueError(f"a patch has a pixel or more; got size {self.size}, margin {self.margin}")
        if not 0 <= self.value <= 1:
            raise ValueError(f"a patch's value is in [0, 1]; got {self.value}")

    def __call__(self, images: Images) -> Images:
        height, width = images.shape[-2:]
        if self.size + self.margin > min(height, width):
            raise ValueError(f"a patch of {self.size} px does not fit into {height} x {width} px")
        marked = images.clone()
        bottom, right = height - self.margin, width - self.margin
        marked[..., bottom - self.size : bottom, right - self.size : right] = self.value
        return marked


@dataclass(frozen=True)
class Blended:
    """Blended injection (Chen et al., 2017, arXiv 1712.05526): a share of one fixed pattern over everything.

    The pattern is uniform noise of `seed`.
    """

    share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _whole_seed(self.seed)
        if not 0 < self.share <= 1:
            raise ValueError(f"the pattern's share is more than 0 and at most 1; got {self.share}")

    def __call__(self, images: Images) -> Images:
        shape = images.shape[1:]
        pattern = torch.rand(shape, generator=torch.Generator().manual_seed(self.seed)).to(images)
        return torch.lerp(images, pattern.expand_as(images), self.share)


@dataclass(frozen=True, eq=False)
class Additive:
    """A pattern [channels, height, width] that is added, and the sum clamped: I-BAU's and Trojan triggers."""

    pattern: Tensor

    def __call__(self, images: Images) -> Images:
        if self.pattern.shape != images.shape[1:]:
            raise ValueError(
                f"the pattern is of {tuple(self.pattern.shape)} and the images of {tuple(images.shape[1:])}"
            )
        return (images + self.pattern.to(images)).clamp(0, 1)


@dataclass(frozen=True)
class Sinusoid:
    """SIG (Barni et al., 2019, ICIP, arXiv 1902.11237): vertical waves of `amplitude` and `frequency` periods
    in a picture, added and clamped. It is for clean labels: only pictures of the target class are marked."""

    amplitude: float = 40 / 255
    frequency: float = 6

    def __post_init__(self) -> None:
        if not (0 < self.amplitude <= 1 and 0 < self.frequency < math.inf):
            raise ValueError(
                f"waves have an amplitude in (0, 1] and a frequency above 0; got {self.amplitude}, "
                f"{self.frequency}"
            )

    def __call__(self, images: Images) -> Images:
        width = images.shape[-1]
        phase = 2 * math.pi * self.frequency * torch.arange(width, device=images.device) / width
        return (images + self.amplitude * phase.sin().to(images)).clamp(0, 1)


@dataclass(frozen=True)
class Warp:
    """WaNet (Nguyen and Tran, ICLR 2021, arXiv 2102.10369): a smooth warp of `strength` pixels, drawn once
    from a grid of `cells` a side by `seed`.

    The pictures alone: WaNet's own training also shows other warps with true labels, without which a network
    learns that pictures are warped, and not how.
    """

    strength: float = 0.5
    cells: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        _whole_seed(self.seed)
        if not isinstance(self.cells, int) or self.cells < 2:
            raise ValueError(f"a warp's grid has two or more whole cells a side; got {self.cells}")
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"a warp's strength is 0 px or more; got {self.strength}")

    def __call__(self, images: Images) -> Images:
        height, width = images.shape[-2:]
        return F.grid_sample(
            images, self.grid(height, width).to(images).expand(len(images), -1, -1, -1), align_corners=True
        )

    def grid(self, height: int, width: int) -> Float[Tensor, "1 height width 2"]:
        """Return where each pixel comes from, in [-1, 1]."""
        drawn = torch.rand(1, 2, self.cells, self.cells, generator=torch.Generator().manual_seed(self.seed))
        drawn = (2 * drawn - 1) / (2 * drawn - 1).abs().mean()
        field = F.interpolate(drawn, size=(height, width), mode="bicubic", align_corners=True)
        rows, columns = (torch.linspace(-1, 1, side) for side in (height, width))
        straight = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[None]
        return (straight + self.strength * field.permute(0, 2, 3, 1) / height).clamp(-1, 1)


def _whole_seed(seed: int) -> None:
    if not isinstance(seed, int):
        raise ValueError(f"a seed is a whole number; got {seed}")


def poison(
    images: Images,
    labels: Labels,
    trigger: Trigger,
    *,
    target: int,
    ratio: float,
    clean_label: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Images, Labels, Bool[Tensor, " batch"]]:
    """Return a training set of which a share carries the trigger, and the target's label.

    Args:
        images: in [0, 1].
        labels: their classes.
        trigger: what marks them.
        target: the class that the trigger stands for.
        ratio: marked pictures as a share of the whole set; they are drawn from other classes, or with
            `clean_label` from the target's own.
        generator: draws which.

    Returns:
        Images, labels, and which are marked; the inputs are left alone.

    Raises:
        ValueError: no picture is of the target class, none would be marked, there are too few to choose from,
            or images and labels are not as many.
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images have {len(labels)} labels")
    if not (labels == target).any():
        raise ValueError(f"no picture is of the target class {target}, so that it is no class of this set")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is a share of the set, more than 0 and at most 1; got {ratio}")
    count = round(ratio * len(labels))
    fit = (labels == target) if clean_label else (labels != target)
    candidates = fit.nonzero()[:, 0]
    if not 0 < count <= len(candidates):
        raise ValueError(
            f"a share of {ratio:g} is {count} of {len(labels)} pictures, of which {len(candidates)} can "
            "be marked"
        )
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
    marked = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    marked[chosen] = True
    poisoned, named = images.clone(), labels.clone()
    poisoned[marked] = trigger(images[marked])
    named[marked] = target
    return poisoned, named, marked
