"""Random masks for training and testing inpainting."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate


def random_masks(
    batch: int, side: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "batch 1 side side"]:
    """Masks with 1 where the picture is repainted: a rectangle or a blob of noise for each picture, a
    tenth all ones."""
    masks = [
        _rectangle(side, generator) if _uniform(generator) < 0.5 else _blob(side, generator)
        for _ in range(batch)
    ]
    everything = torch.rand(batch, 1, 1, 1, generator=generator) < 0.1
    return torch.maximum(torch.stack(masks), everything.float())


def _uniform(generator: torch.Generator | None) -> float:
    return float(torch.rand((), generator=generator))


def _rectangle(side: int, generator: torch.Generator | None) -> Float[Tensor, "1 side side"]:
    height, width = (int(side * (0.25 + 0.6 * _uniform(generator))) for _ in range(2))
    top, left = int((side - height) * _uniform(generator)), int((side - width) * _uniform(generator))
    mask = torch.zeros(1, side, side)
    mask[:, top : top + height, left : left + width] = 1
    return mask


def _blob(side: int, generator: torch.Generator | None) -> Float[Tensor, "1 side side"]:
    field = interpolate(torch.randn(1, 1, 5, 5, generator=generator), size=side, mode="bicubic")[0]
    return (field > field.flatten().quantile(0.3 + 0.5 * _uniform(generator))).float()
