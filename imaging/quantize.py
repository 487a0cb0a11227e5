"""Rounding perturbed images to the integers of a file without leaving the allowed ball."""

import math

import torch

from imaging.picture import Images, all_finite


@torch.no_grad()
def quantize(perturbed: Images, original: Images, eps: float, *, levels: int = 255) -> Images:
    """Round to the nearest level of the file, then clip to the budget in whole levels.

    Truncating instead, as several published implementations do, changes a quarter of the untouched values and
    puts a fifth of those at -eps one level beyond the budget.

    Args:
        perturbed: images in [0, 1]; values outside are clipped.
        original: the images of the file, which are multiples of 1 / levels.
        eps: radius of the Linf ball, such as 8/255; the budget is the whole number of levels inside of it.
        levels: 255 for files of 8 bits per channel, 65535 for 16.

    Returns:
        float32 images k / levels, from which rounding recovers the integer k exactly.

    Raises:
        ValueError: shapes differ, `eps` is negative, `levels` is neither, or a perturbed value is not finite.
    """
    if perturbed.shape != original.shape:
        raise ValueError(
            f"perturbed {tuple(perturbed.shape)} and original {tuple(original.shape)} differ in shape"
        )
    if not eps >= 0 or levels not in (255, 65535):
        raise ValueError(f"expected eps >= 0 and levels 255 or 65535, got eps={eps} and levels={levels}")
    if not all_finite(perturbed):
        raise ValueError("perturbed images must be finite; got NaN or infinity")
    budget = math.floor(eps * levels + 1e-6)  # 8/255 * 255 must not become 7
    centre = (original.float() * levels).round_()
    change = (
        (perturbed.float() * levels).round_().sub_(centre).clamp_(-budget, budget)
    )  # exact: small integers
    return change.add_(centre).clamp_(0, levels).div_(levels)
