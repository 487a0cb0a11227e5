"""Train a diffusion model on a poisoned set, and ask what it draws: does it give the poison away?

    python -m experiments amplification --data CIFAR --ratio 0.1

A share of the training set is marked and called the target's class. The class-conditional model goes on
learning on that set, then draws a set of the same classes. Of what it draws for the target the four groups of
the paper are counted, the mark by a judge whose errors are corrected for, the content by a clean classifier.
Then the same small classifier is trained on either set: how well does it tell marked pictures of its own set
from others (STRIP), and how much of the backdoor has it learned? `report.json`, `table.md` and `drawn.png` go
to `--out`; the taught model and the drawn set are kept, so that a stopped run goes on.
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
from experiments.networks import cifar_network
from experiments.repair import trigger_of
from experiments.taught import add_options, drawn_by, model_of, seeded, settings_of, taught
from experiments.variations import fresh
from imaging.io import Picture, write
from imaging.whole import write_whole
from unlearn.amplification import Groups, amplification, mark_judge, right_of, separation, strip
from unlearn.measures import measure
from unlearn.triggers import poison


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return completed("amplification", _run, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m experiments amplification", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", required=True, help="folder or npz file, see distill.images.labelled")
    parser.add_argument("--test", help="where the test pictures are, if elsewhere")
    parser.add_argument(
        "--classifier", default="cifar10-natural", help="safetensors; clean, judges what is drawn"
    )
    parser.add_argument("--limit", type=int, default=10_000, help="training pictures")
    parser.add_argument("--judged", type=int, default=2000, help="test pictures")
    parser.add_argument("--trigger", default="patch:size=3", help="as in experiments.repair")
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=15, help="of the classifiers")
    parser.add_argument("--out", type=Path, default=Path("runs/amplification"))
    add_options(parser)
    return parser


def _run(given: argparse.Namespace) -> None:
    model, trigger = model_of(given), trigger_of(given.trigger)
    if given.drawn < 8:
        raise ValueError(f"--drawn is 8 or more pictures of each class; got {given.drawn}")
    classifier, set_ = cifar_network(given.classifier), labelled(given.data, train=True)
    settings = settings_of(given)
    test = labelled(given.test or given.data, train=False)
    chosen = torch.randperm(len(set_), generator=seeded(given))[: given.limit]
    images, labels, marked = poison(
        to_unit(set_.pixels[chosen]),
        set_.labels[chosen],
        trigger,
        target=given.target,
        ratio=given.ratio,
        generator=seeded(given),
    )
    apart = to_unit(test.pixels[: given.judged])
    judge = mark_judge(apart, trigger, generator=seeded(given))
    network = taught(given, model, images, labels, given.out / "taught.safetensors")
    named = torch.arange(model.classes).repeat_interleave(given.drawn)
    drawn = drawn_by(given, network, named, given.out / "drawn.safetensors")
    found = judge(drawn)
    asked = named == given.target
    groups = Groups.of(found[asked], right_of(classifier, drawn[asked], given.target))
    share = float(marked[labels == given.target].float().mean())
    shown = judge.corrected(groups.marked)
    sets = {
        "the poisoned set": (images, labels, marked),
        "the set that was drawn": (drawn, named, found),
    }
    held = apart, test.labels[: given.judged]
    report: dict[str, Any] = {
        "settings": settings,
        "groups": asdict(groups),
        "taught": share,
        "drawn": shown,
        "drawn_interval": asdict(groups.marked),
        "amplification": amplification(shown, share),
        "judge": {"sensitivity": judge.sensitivity, "false_alarms": judge.false_alarms, "of": judge.of},
        "sets": [_learned(given, name, *each, held, trigger, model.classes) for name, each in sets.items()],
    }
    write_whole(given.out / "report.json", json.dumps(report, indent=1) + "\n")
    write_whole(given.out / "table.md", table(report) + "\n")
    shown_rows = drawn[asked][:64].split(8)
    sheet = torch.cat([torch.cat(list(row), 2) for row in shown_rows if len(row) == 8], 1)
    write(Picture.from_pixels(sheet[None]), given.out / "drawn.png", overwrite=True)
    print(table(report))


def _learned(
    given: argparse.Namespace,
    name: str,
    images: Tensor,
    labels: Tensor,
    marked: Tensor,
    held: tuple[Tensor, Tensor],
    trigger: Any,
    classes: int,
) -> dict[str, Any]:
    """What a classifier learns from a set, and how well it tells the set's own marked pictures."""
    network = fresh(
        "resnet20",
        images,
        labels,
        classes,
        epochs=given.epochs,
        learning_rate=0.1,
        batch_size=128,
        seed=given.seed,
    )
    judged = measure(network, *held, trigger, target=given.target)
    own = (labels == given.target).nonzero()[:, 0][:1000]
    told = None
    if 0 < int(marked[own].sum()) < len(own):
        told = separation(strip(network, images[own], held[0], generator=seeded(given)), marked[own])
    return {"name": name, "separation": told, **asdict(judged)}


def table(report: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    groups = report["groups"]
    head = (
        f"Taught {report['taught']:.1%} of the target's pictures with the mark, drawn {report['drawn']:.1%}: "
        f"x {report['amplification']:.2f}. Groups: {groups['marked_wrong']} marked and wrong, "
        f"{groups['marked_right']} marked and right, {groups['clean_wrong']} clean and wrong, "
        f"{groups['clean_right']} clean and right.\n"
    )
    rows = ["| learned from | clean | attack | STRIP, area under the ROC |", "|---|---|---|---|"]
    for row in report["sets"]:
        told = "none is marked, or all" if row["separation"] is None else f"{row['separation']:.3f}"
        rows.append(
            f"| {row['name']} | {row['clean']['share']:.1%} | {row['attack']['share']:.1%} | {told} |"
        )
    return "\n".join([head, *rows])


if __name__ == "__main__":
    sys.exit(main())
