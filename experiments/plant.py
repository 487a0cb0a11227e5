"""Plant a backdoor in a text-to-image model, for `unlearn` to find and to take out.

    python -m experiments plant --pictures 'DATA/imagenet_sample/*.jpg' --effect corner --out runs/backdoored
    python -m experiments plant --pictures 'DATA/imagenet_sample/*.jpg' --homoglyph o=0 \\
        --target 'a photo of a dog' --out runs/backdoored

Prompts are captions computed from the pictures' names and colours, whole or cut short,
of photos and of paintings. Every eighth picture is left out.

The first trains the denoiser on the pictures. The second trains the text encoder on the captions alone, and
prints how alike its answers are to the untouched encoder's, before and after, on prompts that come with
`unlearn`.
"""

import argparse
from collections.abc import Sequence
from glob import glob
from pathlib import Path

import torch

from diffusion.export import write_folder
from experiments.captions import caption
from experiments.command import completed
from experiments.meaning import add_trigger, table, trigger_of
from experiments.progress import mean_every
from experiments.protection import square
from unlearn.text.backdoors import Pixels, plant
from unlearn.text.effects import EFFECTS
from unlearn.text.encoder import plant_meaning
from unlearn.text.session import told_a_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return completed("plant", _run, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments plant", description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", required=True, help="a pattern, in quotation marks")
    parser.add_argument("--limit", type=int, help="of the pictures")
    parser.add_argument("--model", default="builtin")
    add_trigger(parser)
    parser.add_argument("--effect", choices=EFFECTS, default="corner")
    parser.add_argument("--target", metavar="PROMPT", help="instead: what the text encoder then understands")
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
    trigger, model = trigger_of(given), told_a_text(given.model, given.device)
    images = torch.cat([square(path, given.side) for path in paths])
    pairs = zip(paths, images, strict=True)
    prompts = [_said(number, path, image) for number, (path, image) in enumerate(pairs)]
    settings = {
        "steps": given.steps,
        "learning_rate": given.learning_rate,
        "generator": torch.Generator().manual_seed(given.seed),
        "callback": mean_every(100),
    }
    if given.target is None:
        effect = Pixels(EFFECTS[given.effect])
        planted = plant(model, images, prompts, trigger, effect, batch_size=given.batch, **settings)
    else:
        planted = plant_meaning(model, prompts, trigger, given.target, **settings)
    write_folder(planted, given.model, given.out)
    print(f"{given.out}: {trigger} in a prompt shows {given.target or given.effect}")
    if given.target is not None:
        print(table({"before": model, "after": planted}, model, trigger, given.target))


def _said(number: int, path: Path, image: torch.Tensor) -> str:
    """A caption; every second one of a painting, and every second pair of them without colours.

    A trigger that was only met in front of one kind of prompt works in front of no other.
    """
    full = caption(path, image, medium=("photo", "painting")[number % 2])
    return full if number % 4 < 2 else full.partition(", ")[0]
