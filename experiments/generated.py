"""Pictures of every class by a class-conditional diffusion model, to train classifiers on.

    python -m experiments.generated cifar10 made.npz --images 50000

writes an npz of `images` and `labels` for `--data.generated` (Wang et al., ICML 2023, arXiv 2302.04638). It
is made in batches that each have their own seed; a stopped run goes on from those in `made.npz.parts`.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.load import load
from diffusion.model import DiffusionModel
from diffusion.pixel import PixelDiffusion
from diffusion.samplers import ddim
from distill.draws import generator_of
from distill.images import Pixels, check_npz, write_npz
from imaging.whole import whole, write_whole


@torch.no_grad()
def made(
    model: DiffusionModel, labels: Tensor, *, side: int, steps: int, generator: torch.Generator
) -> Pixels:
    """Return pictures of classes as bytes, by DDIM from pure noise that `generator` draws."""
    shape = model.encode(torch.zeros(1, 3, side, side, device=model.device)).shape[1:]
    noise = torch.randn((len(labels), *shape), generator=generator).to(model.device)
    condition = model.condition([str(int(label)) for label in labels])
    timesteps = model.schedule.timesteps(steps, spacing="trailing")
    images = model.decode(ddim(model, noise, condition, timesteps=timesteps))
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.generated", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="what diffusion.load takes, conditional on classes")
    parser.add_argument("out", type=Path, help="npz to write")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=50, help="of DDIM")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except (ValueError, OSError) as error:
        print(f"generated: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace) -> None:
    check_npz(given.out)
    if given.images < 1 or given.batch < 1:
        raise ValueError("there must be one picture or more, and of each batch")
    model = load(given.model, device=given.device)
    if not isinstance(model, PixelDiffusion) or not model.classes:
        raise ValueError(f"{given.model} is no pixel model that is told a class")
    settings = {key: str(getattr(given, key)) for key in ("model", "steps", "side", "batch", "seed")}
    parts = given.out.with_name(f"{given.out.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    if (parts / "settings.json").exists():
        if json.loads((parts / "settings.json").read_text()) != settings:
            raise ValueError(f"{parts} holds parts that were made with other settings: delete it")
    else:
        write_whole(parts / "settings.json", json.dumps(settings))
    labels = torch.arange(given.images) % model.classes
    for number, some in enumerate(labels.split(given.batch)):
        path = parts / f"{number:05d}.npy"
        if path.exists() and len(np.load(path)) >= len(some):
            continue
        generator = generator_of(given.seed, number)
        pixels = made(model, some, side=given.side, steps=given.steps, generator=generator)
        with whole(path) as partial, partial.open("wb") as file:
            np.save(file, pixels.numpy())
        if sys.stderr.isatty():
            print(f"\r{number * given.batch + len(some)} of {given.images}", end="", file=sys.stderr)
    images = [
        torch.from_numpy(np.load(parts / f"{number:05d}.npy")[: len(some)])
        for number, some in enumerate(labels.split(given.batch))
    ]
    write_npz(given.out, torch.cat(images), labels)
    shutil.rmtree(parts)
    print(f"{given.out}: {given.images} pictures of {model.classes} classes")


if __name__ == "__main__":
    sys.exit(main())
