"""A heatmap as a picture that a person can read."""

import torch

from detect.detector import Heat
from imaging.picture import Images

_COLD, _HOT = (0.1, 0.2, 0.9), (0.95, 0.15, 0.05)
_STRENGTH = 0.6


def overlay(images: Images, heat: Heat) -> Images:
    """Return gray images, coloured blue where their heat is lowest and red where it is highest.

    Heat has no unit: colours compare places of one picture, never two pictures.
    """
    flat = heat.flatten(1)
    low, high = (flat.quantile(q, dim=1)[:, None, None] for q in (0.02, 0.98))
    share = ((heat - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)[:, None]
    cold, hot = (images.new_tensor(colour).view(1, 3, 1, 1) for colour in (_COLD, _HOT))
    gray = images.mean(1, keepdim=True)
    return ((1 - _STRENGTH) * gray + _STRENGTH * torch.lerp(cold, hot, share)).clamp(0, 1)
