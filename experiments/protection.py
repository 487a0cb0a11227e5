"""What measurements of protection share: pictures of one size, the control, and intervals over pictures.

The measurements themselves are `experiments.protect_benchmark` and `experiments.inpainting`.
"""

import csv
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffusion.choice import network_precision
from diffusion.model import DiffusionModel
from imaging.io import read
from imaging.quantize import quantize
from protect.command.options import options, split_arguments
from protect.method import ProtectionMethod
from protect.methods import create

CONTROL = "control (random ± eps)"
PROMPT = "a painting of a castle, orange and blue, bright"
"""What the thief asks for: nothing that any method was made with."""


def square(path: Path, side: int) -> Tensor:
    """The centre of a picture as a byte-exact image [1, 3, side, side] in [0,1]."""
    image = read(path).pixels[:1]
    scale = side / min(image.shape[-2:])
    size = [max(side, round(extent * scale)) for extent in image.shape[-2:]]
    image = interpolate(image, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = ((extent - side) // 2 for extent in size)
    return (image[..., top : top + side, left : left + side] * 255).round() / 255


def variant(words: str, *, eps: float, steps: int) -> ProtectionMethod:
    """Return the method that `words` name, with the settings that follow its name.

    Raises ValueError for words that the command line would refuse.
    """
    name, *arguments = shlex.split(words)
    others, settings = split_arguments(arguments, options(create(name)))
    if others:
        raise ValueError(f"a variant is a method and its options; got also {' '.join(others)!r} in {words!r}")
    return create(name, **{"eps": eps, "steps": steps, **settings})


def random_signs(image: Tensor, eps: float) -> Tensor:
    """The control: every value moved by `eps`, up or down by chance, and rounded as in a file."""
    signs = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    return quantize((image + torch.where(signs, eps, -eps)).clamp(0, 1), image, eps)


def protect(name: str, image: Tensor, model: DiffusionModel, *, eps: float, steps: int) -> Tensor:
    """The protected image as it would be saved, or the control."""
    if name == CONTROL:
        return random_signs(image, eps)
    method = create(name, eps=eps, steps=steps)
    generator = torch.Generator().manual_seed(0)
    found = method.protect(
        image, model, generator=generator, precision=network_precision("auto", image.device)
    )
    return quantize(found, image, eps)


def per_picture(rows: Sequence[Any], method: str) -> Tensor:
    """The mean change of each picture under a method; rows have `picture`, `method` and `change`."""
    changes: dict[str, list[float]] = {}
    for row in rows:
        if row.method == method:
            changes.setdefault(row.picture, []).append(row.change)
    return torch.tensor([sum(group) / len(group) for group in changes.values()])


def bootstrap(values: Tensor, draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the mean of values, one for each picture, over draws of the pictures."""
    generator = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (draws, len(values)), generator=generator)].mean(1)
    return means.quantile(0.025).item(), means.quantile(0.975).item()


def recorded(rows: Iterator[Any], kind: type, path: Path) -> list[Any]:
    """Collect rows of a dataclass, each written to a CSV file as soon as it is measured."""
    collected = []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(kind)])
        writer.writeheader()
        for row in rows:
            collected.append(row)
            writer.writerow(asdict(row))
            file.flush()
    return collected


def read_rows(path: Path, kind: type) -> list[Any]:
    """Return the rows of a dataclass in a JSON-lines file, if there is one, but for a line cut short."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(kind(**json.loads(line)))
        except ValueError:
            continue  # the last line of a run that was killed while it wrote
    return rows
