"""Repair a backdoored classifier by every method, and say what of the backdoor and of the accuracy is left.

    python -m experiments repair --classifier backdoored.safetensors --data CIFAR \
        --trigger patch:size=4,margin=1 --target 8 --clean 2500 --out runs/repair

Clean pictures for the repair, and those that it is judged on, are two parts of the test pictures. It writes
`report.json` and `table.md`, and with `--keep METHOD` a repaired classifier. Triggers: `patch`, `blended`,
`sinusoid` and `warp`, with their settings behind a colon, or `additive:FILE.png`, a picture that is added.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.classifier import Classifier
from distill.images import labelled, to_unit
from experiments.command import completed
from experiments.networks import cifar_network
from imaging.io import read
from imaging.whole import write_whole
from unlearn.measures import Measures, defence_effectiveness, measure
from unlearn.repairs import REPAIRS, repair
from unlearn.triggers import Additive, Blended, Patch, Sinusoid, Trigger, Warp

POISONED = {"abl"}
"""Repairs that learn from the poisoned set, and not from clean pictures."""
TRIGGERS: dict[str, type[Any]] = {"patch": Patch, "blended": Blended, "sinusoid": Sinusoid, "warp": Warp}


def trigger_of(words: str) -> Trigger:
    """Return the trigger that is written as in this module.

    Raises ValueError for a name or a setting that there is not.
    """
    name, _, rest = words.partition(":")
    if name == "additive":
        return Additive(read(Path(rest)).pixels[0])
    if name not in TRIGGERS:
        raise ValueError(f"unknown trigger {name!r}; available: {', '.join(TRIGGERS)}, additive:FILE")
    given = (part.partition("=") for part in rest.split(",") if part)
    try:
        return TRIGGERS[name](**{key: json.loads(value) for key, _, value in given})
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{words!r} is no trigger: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return completed("repair", _run, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments repair", description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", required=True, help="safetensors")
    parser.add_argument("--data", required=True, help="folder or npz file, see distill.images.labelled")
    parser.add_argument("--trigger", required=True)
    parser.add_argument("--target", type=int, required=True, help="the class that the trigger stands for")
    parser.add_argument("--methods", nargs="+", choices=REPAIRS, help="all without")
    parser.add_argument("--poisoned", help="the training set, folder or npz file; abl needs it")
    parser.add_argument("--clean", type=int, default=2500, help="test pictures that the repair may use")
    parser.add_argument("--images", type=int, help="of the others, how many are judged on; all without")
    parser.add_argument("--keep", choices=REPAIRS, help="write this one as repaired.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/repair"))
    return parser


def _run(given: argparse.Namespace) -> None:
    network, trigger = cifar_network(given.classifier).to(given.device), trigger_of(given.trigger)
    if given.keep is not None and not isinstance(network, Classifier):
        raise ValueError(f"{given.classifier} does not say which network it holds, so none is kept")
    pictures = labelled(given.data, train=False)
    if not 10 <= given.clean < len(pictures):
        raise ValueError(f"there are {len(pictures)} test pictures; --clean asks for {given.clean}")
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(given.seed))
    clean, judged = order[: given.clean], order[given.clean :][: given.images]
    (images, labels), (own, classes) = (
        (to_unit(pictures.pixels[part]).to(given.device), pictures.labels[part].to(given.device))
        for part in (judged, clean)
    )
    methods = given.methods or [each for each in REPAIRS if each not in POISONED or given.poisoned]
    own_data = {method: (own, classes) for method in methods}
    if set(methods) & POISONED:
        if given.poisoned is None:
            raise ValueError("abl unlearns from the poisoned training set: name it by --poisoned")
        taught = labelled(given.poisoned, train=True)
        poisoned = to_unit(taught.pixels).to(given.device), taught.labels.to(given.device)
        own_data |= dict.fromkeys(set(methods) & POISONED, poisoned)
    before = measure(network, images, labels, trigger, target=given.target)
    rows: list[dict[str, Any]] = [_row("none", before, before, 0.0)]
    settings = {key: str(value) for key, value in vars(given).items()}
    given.out.mkdir(parents=True, exist_ok=True)
    for method in methods:
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(given.seed)
        made = repair(network, *own_data[method], method=method, generator=generator)
        spent = time.perf_counter() - started
        after = measure(made, images, labels, trigger, target=given.target)
        rows.append(_row(method, before, after, spent))
        if method == given.keep:
            _keep(made, given.out / "repaired.safetensors")
        told = {"settings": settings, "rows": rows}  # so far: a run may be stopped
        write_whole(given.out / "report.json", json.dumps(told, indent=1) + "\n")
        write_whole(given.out / "table.md", table(rows) + "\n")
        print(f"{method}: attack {after.attack}, {spent:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))


def _row(method: str, before: Measures, after: Measures, seconds: float) -> dict[str, Any]:
    shown = {name: str(getattr(after, name)) for name in ("clean", "attack", "robust")}
    rating = defence_effectiveness(before, after)
    return {"method": method, **asdict(after), "shown": shown, "rating": rating, "seconds": seconds}


def _keep(network: nn.Module, path: Path) -> None:
    assert isinstance(network, Classifier)
    network.save(path)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    heads = ["repair", "clean accuracy", "attack success", "robust accuracy", "rating", "s"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        figures = " | ".join(row["shown"].values())
        lines.append(f"| {row['method']} | {figures} | {row['rating']:.3f} | {row['seconds']:.1f} |")
    return "\n".join(lines)
