"""Make a class-conditional model of CIFAR-10 forget a class, and measure what it draws before and after.

    python -m experiments forget --data CIFAR --forget 0 --override 1

Three rows: the model in several steps, its own one-step pictures, and those of the generator that forgot.
Shares are of pictures that were asked for as that class, and not of all pictures; the Frechet distance is in
the classifier's last features, of the remaining classes alone, and no FID. `report.json`, `table.md` and
`samples.png` go to `--out`.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.pixel import PixelDiffusion
from distill.images import labelled, to_unit
from experiments.cifar_card import features, frechet, sample
from experiments.command import completed
from experiments.networks import cifar_network
from experiments.progress import mean_every
from experiments.taught import model_of, seeded
from imaging.io import Picture, write
from imaging.whole import write_whole
from unlearn.forgetting import Forgetting
from unlearn.measures import Rate, answers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return completed("forget", _run, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments forget", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="cifar10", help="of pixels, told a class")
    parser.add_argument("--classifier", default="cifar10-natural", help="safetensors; judges what is drawn")
    parser.add_argument("--data", required=True, help="test pictures, see distill.images.labelled")
    parser.add_argument("--forget", default="0", help="number of the class")
    parser.add_argument("--override", default="1", help="number of the class that takes its place")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--drawn", type=int, default=100, help="pictures of each class that are judged")
    parser.add_argument("--sampling-steps", type=int, default=20, help="of the first row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the training; all else is on the CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/forget"))
    return parser


def _run(given: argparse.Namespace) -> None:
    model = model_of(given)
    method = Forgetting(given.forget, given.override, learning_rate=given.learning_rate)
    classes = [str(number) for number in range(model.classes)]
    like = model.encode(torch.zeros(1, 3, model.comfortable, model.comfortable))
    judge = Judge(given, model.classes)
    asked = [name for name in classes for _ in range(given.drawn)]
    labels = torch.tensor([int(name) for name in asked])

    def at_once(network: PixelDiffusion) -> Tensor:
        generator, made = torch.Generator().manual_seed(given.seed), []
        for part in torch.arange(len(asked)).split(250):
            told = [asked[int(row)] for row in part]
            made.append(network.decode(method.generated(network, told, like, generator)))
        return torch.cat(made)

    pictures = {
        f"{given.sampling_steps} steps": sample(model, labels, steps=given.sampling_steps, seed=given.seed),
        "one step": at_once(model),
    }
    started = time.perf_counter()
    student = method.distil(
        model.to(given.device),
        classes,
        like.to(given.device),
        steps=given.steps,
        batch_size=given.batch,
        generator=seeded(given),
        callback=mean_every(50),
    ).cpu()
    seconds = time.perf_counter() - started
    pictures["one step, after forgetting"] = at_once(student)
    rows = [{"name": name, **judge(images, labels)} for name, images in pictures.items()]
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) for key, value in vars(given).items()}
    record = {"settings": settings, "seconds": seconds, "rows": rows}
    write_whole(given.out / "report.json", json.dumps(record, indent=1) + "\n")
    write_whole(given.out / "table.md", table(rows) + "\n")
    shown = torch.cat([images[:: given.drawn] for images in pictures.values()])
    grid = shown.unflatten(0, (len(pictures), -1)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    write(Picture.from_pixels(grid[None].clamp(0, 1)), given.out / "samples.png", overwrite=True)
    print(table(rows))


class Judge:
    """What a classifier says of pictures that were asked for by class."""

    def __init__(self, given: argparse.Namespace, classes: int) -> None:
        test = labelled(given.data, train=False)
        self._forget, self._override = int(given.forget), int(given.override)
        self._network: nn.Module = cifar_network(given.classifier)
        remaining = test.pixels[test.labels != self._forget][: given.drawn * (classes - 1)]
        self._real = features(self._network, to_unit(remaining))

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return the row of a set of pictures."""
        said = answers(self._network, images)
        gone = labels == self._forget
        shares = {
            "forgotten": Rate.of_hits(said[gone] == self._forget),
            "overridden": Rate.of_hits(said[gone] == self._override),
            "remaining": Rate.of_hits(said[~gone] == labels[~gone]),
        }
        found: dict[str, Any] = {name: vars(rate) | {"shown": str(rate)} for name, rate in shares.items()}
        return {**found, "distance": frechet(features(self._network, images[~gone]), self._real)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    heads = ("pictures", "forgotten class is itself", "is the other", "remaining right", "Frechet distance")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        shares = [row[key]["shown"] for key in ("forgotten", "overridden", "remaining")]
        lines += [f"| {row['name']} | {' | '.join(shares)} | {row['distance']:.1f} |"]
    return "\n".join(lines)
