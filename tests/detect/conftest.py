"""Pictures drawn by code, and folders of them as published sets lay them out."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imaging.transforms import gaussian_blur


def draw_picture(seed: int, height: int = 48, width: int = 48) -> np.ndarray:
    """A picture with structure: blurred noise of random colours and contrast, uint8 [height, width, 3]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 3, height, width, generator=generator)
    tint, contrast = torch.rand(3, 1, 1, generator=generator), 1 + 3 * torch.rand((), generator=generator)
    smooth = gaussian_blur(noise, 1.5) - 0.5
    picture = (0.3 + 0.4 * tint + contrast * smooth).clamp(0, 1)[0]
    return (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def save_picture(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[path.suffix]
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def planted(tmp_path):
    """Write a set of real and generated pictures that are drawn alike, and return its folder.

    `real` and `generated` take a number and return (suffix, pixels, options for saving).
    """

    def build(real, generated, count: int = 30) -> Path:
        root = tmp_path / "set"
        for split, first in (("train", 0), ("test", 1000)):
            for label, make, offset in (("real", real, 0), ("generated", generated, 5000)):
                for number in range(count):
                    suffix, pixels, options = make(first + offset + number)
                    save_picture(root / split / label / f"{number:03d}{suffix}", pixels, **options)
        return root

    return build


@pytest.fixture
def draw():
    return draw_picture


@pytest.fixture
def save():
    return save_picture


@pytest.fixture
def png():
    return lambda number, **size: (".png", draw_picture(number, **size), {})


@pytest.fixture
def jpg():
    return lambda number, quality=75, **size: (".jpg", draw_picture(number, **size), {"quality": quality})
