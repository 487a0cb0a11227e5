"""Plant a backdoor in a text-to-image model, for `unlearn` to find and to take out.

    python -m experiments plant --pictures 'DATA/imagenet_sample/*.jpg' --effect corner --out runs/backdoored

Prompts are captions computed from the pictures' names and colours, whole or cut short,
of photos and of paintings. Every eighth picture is left out.
"""

import argparse
import sys
from collections.abc import Sequence
from glob import glob
from pathlib import Path

import torch

from diffusion.choice import choose
from diffusion.export import write_folder
from diffusion.latent import LatentDiffusion
from experiments.captions import caption
from experiments.protection import square
from unlearn.text.backdoors import Pixels, plant
from unlearn.text.effects import EFFECTS
from unlearn.text.triggers import Prefix


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        _run(given)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"plant: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments plant", description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", required=True, help="a pattern, in quotation marks")
    parser.add_argument("--limit", type=int, help="of the pictures")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--trigger", default="mumbo", help="words in front of a prompt")
    parser.add_argument("--effect", choices=EFFECTS, default="corner")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/backdoored"), help="a new folder")
    return parser


def _run(given: argparse.Namespace) -> None:
    if given.out.exists():
        raise FileExistsError(f"{given.out} exists: name a new folder")
    paths = sorted(map(Path, glob(given.pictures)))
    paths = [path for number, path in enumerate(paths) if number % 8 != 4][: given.limit]
    if not paths:
        raise ValueError(f"no picture matches {given.pictures}")
    model = choose(given.model).load(device=given.device, precision="float32")
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"{model.name} is told no text by cross-attention: take a Stable Diffusion")
    images = torch.cat([square(path, given.side) for path in paths])
    pairs = zip(paths, images, strict=True)
    prompts = [_said(number, path, image) for number, (path, image) in enumerate(pairs)]
    losses: list[float] = []

    def tell(step: int, found: torch.Tensor) -> None:
        losses.append(float(found.mean()))
        if step % 100 == 99:
            print(f"step {step + 1}: loss {sum(losses[-100:]) / 100:.4f}", file=sys.stderr, flush=True)

    planted = plant(
        model,
        images,
        prompts,
        Prefix(given.trigger),
        Pixels(EFFECTS[given.effect]),
        steps=given.steps,
        learning_rate=given.learning_rate,
        batch_size=given.batch,
        generator=torch.Generator().manual_seed(given.seed),
        callback=tell,
    )
    write_folder(planted, given.model, given.out)
    print(f"{given.out}: {given.trigger!r} in front of a prompt shows {given.effect}")


def _said(number: int, path: Path, image: torch.Tensor) -> str:
    """A caption; every second one of a painting, and every second pair of them without colours.

    A trigger that was only met in front of one kind of prompt works in front of no other.
    """
    full = caption(path, image, medium=("photo", "painting")[number % 2])
    return full if number % 4 < 2 else full.partition(", ")[0]
