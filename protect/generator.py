"""The network of the instant mode: from a picture to its perturbation in one pass, for pictures of any size.

A small U-Net without attention and without norms over the picture, so that a pixel's perturbation depends on
its surroundings alone: not on the size of the picture, and not on the pictures beside it.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.known import MissingWeightsError
from imaging.tiles import crop_padding, pad_to_multiple

CONFIG, WEIGHTS = "config.json", "generator.safetensors"
"""The two files of a trained generator's folder."""

PERIOD = 64
"""Pixels after which the learned texture repeats; tiles of one picture start at multiples of it."""

Images = Float[Tensor, "batch 3 height width"]
Features = Float[Tensor, "batch channels rows columns"]


def _even(x: Features) -> Features:
    """Scale the channels at each place to a mean square of 1 (Zhang and Sennrich, 2019, arXiv 1910.07467)."""
    return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt()


class _Block(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate")
        self.second = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Features) -> Features:
        return x + self.second(F.silu(self.first(_even(x))))


class Origin(NamedTuple):
    """Where a trained network comes from."""

    surrogates: tuple[str, ...]
    """Names of the models that it was trained against."""
    digest: str
    """Changes with its weights."""


class Generator(nn.Module):
    """Say for every value of a picture which way to move it and how far, in (-1, 1).

    Args:
        widths: channels at each scale; the first sees pixels folded `patch` by `patch` into channels, each
            further one half the rows and columns.
        depths: residual blocks at each scale, once on the way down and, but for the last, once on the way up.
        patch: side of the squares that are folded.
        push: root mean square of what goes into tanh, in each square of pixels: the more, the more of the
            budget is used, and the less gradient is left to train with.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 96, 96),
        depths: Sequence[int] = (2, 2, 2),
        patch: int = 4,
        push: float = 1.5,
    ) -> None:
        super().__init__()
        if not len(widths) == len(depths) >= 1:
            raise ValueError(f"widths and depths have one entry per scale; got {widths} and {depths}")
        self.config = {"widths": list(widths), "depths": list(depths), "patch": patch, "push": push}
        self.patch, self.multiple, self.push = patch, patch * 2 ** (len(widths) - 1), push
        steps = list(pairwise(widths))
        self.read = nn.Conv2d(3 * patch**2, widths[0], 3, padding=1, padding_mode="replicate")
        # One texture for all pictures is most of what can be said at once; the network corrects it.
        self.texture = nn.Parameter(torch.randn(1, 3 * patch**2, PERIOD // patch, PERIOD // patch))
        self.place = nn.Conv2d(3 * patch**2, widths[0], 1)
        self.down = nn.ModuleList(_blocks(width, depth) for width, depth in zip(widths, depths, strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in steps)
        self.grow = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in steps)
        self.up = nn.ModuleList(
            _blocks(width, depth) for width, depth in zip(widths[:-1], depths[:-1], strict=True)
        )
        self.write = nn.Conv2d(widths[0], 3 * patch**2, 3, padding=1, padding_mode="replicate")
        for parameter in self.write.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Images) -> Images:
        """Return a direction in (-1, 1) for images in [0,1], of any size and in their shape, as float32."""
        padded = pad_to_multiple(images, self.multiple)
        x = self.read(F.pixel_unshuffle(2 * padded - 1, self.patch))
        texture = _repeated(_even(self.texture), *x.shape[-2:])
        x = self.down[0](x + self.place(texture))
        passed = []
        for shrink, blocks in zip(self.shrink, list(self.down)[1:], strict=True):
            passed.append(x)
            x = blocks(shrink(F.pixel_unshuffle(x, 2)))
        for grow, blocks in zip(reversed(self.grow), reversed(self.up), strict=True):
            x = blocks(passed.pop() + F.pixel_shuffle(grow(x), 2))
        # Unscaled, a few steps of training are enough to press every value flat against the bound, where tanh
        # has no gradient left; scaled, nearly all of the budget is used and no value is stuck.
        direction = torch.tanh(self.push * _even(texture + self.write(_even(x)).float()))
        return crop_padding(F.pixel_shuffle(direction, self.patch), *images.shape[-2:])


def _repeated(canvas: Features, rows: int, columns: int) -> Features:
    height, width = canvas.shape[-2:]
    return canvas.repeat(1, 1, -(-rows // height), -(-columns // width))[..., :rows, :columns]


def _blocks(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(width) for _ in range(depth)))


def from_folder(folder: Path) -> tuple[Generator, Origin]:
    """Read a trained generator, frozen and in float32.

    Raises MissingWeightsError, with one sentence, if a file is absent, damaged or made for another network.
    """
    config, path = _config(folder), folder / WEIGHTS
    try:
        network = Generator(config["widths"], config["depths"], config["patch"], config["push"])
        network.load_state_dict(load_file(path))
        origin = Origin(tuple(config["surrogates"]), hashlib.sha256(path.read_bytes()).hexdigest()[:16])
    except FileNotFoundError:
        raise MissingWeightsError(f"{folder} holds no {WEIGHTS}") from None
    except SafetensorError as error:
        raise MissingWeightsError(f"{path} is damaged ({error}): fetch it again") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise MissingWeightsError(f"{path} does not fit its {CONFIG}: export both again") from error
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last), origin


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except OSError:
        raise MissingWeightsError(
            f"{str(folder)!r} is no folder of a trained network: it has no {CONFIG}"
        ) from None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise MissingWeightsError(f"{folder / CONFIG} is damaged: fetch it again")
    return config
