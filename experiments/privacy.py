"""Train a model on private pictures, and a second one on what the first draws, without what it has by heart.

    python -m experiments privacy --data CIFAR --private 500 --steps 3000

The private pictures are test pictures, which the shipped model has not seen. A network learns to tell them
from each other; its threshold is exceeded by one in a hundred of other test pictures. Rows: real pictures
that nobody trained on, what the first model draws, what is kept of it, and what the second model draws.
Beside the share that is re-identified stands the accuracy, on further test pictures, of a small classifier
that is trained on the row. `report.json` and `table.md` go to `--out`; models and drawn sets are kept, so
that a stopped run goes on.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.images import labelled, to_unit
from experiments.command import completed
from experiments.taught import add_options, drawn_by, model_of, seeded, settings_of, taught
from experiments.variations import fresh
from imaging.whole import write_whole
from unlearn.amplification import right_of
from unlearn.measures import Rate
from unlearn.privacy import Memory, Reidentifier


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return completed("privacy", _run, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments privacy", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="test pictures, see distill.images.labelled")
    parser.add_argument("--private", type=int, default=500, help="pictures that the first model learns")
    parser.add_argument("--false-matches", type=float, default=0.01, help="of other real pictures")
    parser.add_argument("--judged", type=int, default=2000, help="further pictures, for the classifiers")
    parser.add_argument("--reidentifier-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=15, help="of the classifiers")
    parser.add_argument("--out", type=Path, default=Path("runs/privacy"))
    add_options(parser)
    return parser


def _run(given: argparse.Namespace) -> None:
    model = model_of(given)
    real = labelled(given.data, train=False)
    if len(real) < given.private + given.judged + 2:
        raise ValueError(
            f"{given.data} has {len(real)} test pictures; {given.private} private and {given.judged} judged"
            " ones leave none for the threshold"
        )
    settings = settings_of(given)
    order = torch.randperm(len(real), generator=seeded(given))
    images, labels = to_unit(real.pixels[order]), real.labels[order]
    first, last = given.private, given.private + given.judged
    private, held = (images[:first], labels[:first]), (images[first:last], labels[first:last])
    others = images[last:]
    half = len(others) // 2
    network = Reidentifier.fitted(private[0], epochs=given.reidentifier_epochs, generator=seeded(given))
    memory = Memory.of(network, private[0], others[:half], false_matches=given.false_matches)
    named = torch.arange(model.classes).repeat_interleave(given.drawn)
    one = taught(given, model, *private, given.out / "first.safetensors")
    made = drawn_by(given, one, named, given.out / "first_drawn.safetensors")
    kept = ~memory.recognises(made)
    if not kept.any():
        raise ValueError("every picture that the first model drew is re-identified: nothing is left to learn")
    two = taught(given, model, made[kept], named[kept], given.out / "second.safetensors")
    again = drawn_by(given, two, named, given.out / "second_drawn.safetensors")
    rows = {
        "real, nobody trained on": (others[half:], None),
        "private": private,
        "drawn by the first model": (made, named),
        "kept of that": (made[kept], named[kept]),
        "drawn by the second model": (again, named),
    }
    found = [_row(given, memory, name, *each, held, model.classes) for name, each in rows.items()]
    report = {"settings": settings, "threshold": memory.threshold, "rows": found}
    write_whole(given.out / "report.json", json.dumps(report, indent=1) + "\n")
    write_whole(given.out / "table.md", table(found) + "\n")
    print(table(found))


def _row(
    given: argparse.Namespace,
    memory: Memory,
    name: str,
    images: Tensor,
    labels: Tensor | None,
    held: tuple[Tensor, Tensor],
    classes: int,
) -> dict[str, Any]:
    accuracy = None
    if labels is not None:
        sizes = {"epochs": given.epochs, "learning_rate": 0.1, "batch_size": 128, "seed": given.seed}
        classifier = fresh("resnet20", images, labels, classes, **sizes)
        accuracy = asdict(Rate.of_hits(right_of(classifier, *held)))
    return {"name": name, "pictures": len(images), "risk": asdict(memory.risk(images)), "accuracy": accuracy}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| pictures | of them | re-identified | 95 % | accuracy learned from them |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        risk = row["risk"]
        learned = "" if row["accuracy"] is None else f"{row['accuracy']['share']:.1%}"
        interval = f"{risk['low']:.1%} to {risk['high']:.1%}"
        lines.append(f"| {row['name']} | {row['pictures']} | {risk['share']:.1%} | {interval} | {learned} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
