"""Evaluate classifiers under the attacks of every table on adversarial distillation.

    python -m experiments robustness --classifier student.safetensors --data DATA --out runs/ard

writes `records.jsonl` (one line per image and attack; a stopped run goes on from it), `report.json` and
`table.md`. The columns: `fgsm` one step of eps; `pgd-sat` 20 steps of eps/4 from a random start; `pgd-trades`
20 of 0.003; `cw` 30 steps of eps/4 on the margin; `autoattack` its standard version, on as many images as
`--autoattack-images` says. `apgd`, which is run when it is asked for, is AutoAttack without FAB and Square: a
bound from above, for many images in a fraction of the time. Where eps is 8, a quarter is the 2/255 of the
papers.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks import Linf, cross_entropy, margin, pgd
from attacks.adapters import MissingLibraryError, attack
from attacks.checks import model_doubts
from attacks.evaluate import NULL, Attack, Record, Row, evaluate, summarise, table
from diffusion.load import fingerprint
from distill.images import labelled, to_unit
from experiments.evaluate import balanced
from experiments.networks import cifar_network, folded

COLUMNS = ("fgsm", "pgd-sat", "pgd-trades", "cw", "autoattack")
ATTACKS = (*COLUMNS, "apgd")
PLACES = ("out", "device", "batch", "attack", "autoattack_images", "apgd_images")
"""What figures do not depend on, but for which images they are of."""


def columns(model: nn.Module, eps: float, batch: int, seed: int = 0) -> dict[str, Attack]:
    """Return the attacks of the tables by name; those that start at random draw from `seed` alone."""
    ball = Linf(eps)

    def ascend(objective: Callable[..., Any], steps: int, step_size: float) -> Attack:
        def run(images: Tensor, labels: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return pgd(
                objective(model, labels),
                images,
                ball,
                steps=steps,
                step_size=step_size,
                random_start=steps > 1,
                generator=generator,
            )

        return run

    return {
        "fgsm": ascend(cross_entropy, 1, eps),
        "pgd-sat": ascend(cross_entropy, 20, eps / 4),
        "pgd-trades": ascend(cross_entropy, 20, 0.003),
        "cw": ascend(margin, 30, eps / 4),
        "autoattack": attack("autoattack", model, eps=eps, batch_size=batch, seed=seed),
        "apgd": attack(
            "autoattack", model, eps=eps, attacks=("apgd-ce", "apgd-t"), batch_size=batch, seed=seed
        ),
    }


def doubts_of(rows: Sequence[Row]) -> list[str]:
    """Return orders between the columns that an honest evaluation does not show."""
    found, by_name = [], {row.attack: row for row in rows}
    for weaker, stronger in ((NULL, "fgsm"), ("fgsm", "pgd-sat"), ("pgd-trades", "pgd-sat")):
        if weaker in by_name and stronger in by_name:
            one, other = by_name[weaker], by_name[stronger]
            slack = 2 / 1.96 * (one.half_widths[0] ** 2 + other.half_widths[0] ** 2) ** 0.5
            if other.average > one.average + slack:
                found.append(f"{stronger} leaves more than {weaker}: gradients are masked, or it is broken")
    for honest in ("cw", "autoattack", "apgd"):
        if "pgd-sat" in by_name and honest in by_name:
            fell = by_name["pgd-sat"].average - by_name[honest].average
            if fell > (0.08 if honest == "cw" else 0.10):
                found.append(
                    f"{honest} leaves {100 * fell:.0f} points less than pgd-sat: the cross-entropy is "
                    "masked, as by logits too large to have a gradient; do not believe pgd-sat"
                )
    return found


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Return the columns in per cent, with the weighted accuracy of each attack (half clean, half robust) and
    the harmonic mean of clean accuracy and AutoAttack's ("nrr")."""
    found = {("clean" if row.attack == NULL else row.attack): 100 * row.average for row in rows}
    clean = found["clean"]
    weighted = {f"w {name}": (clean + found[name]) / 2 for name in ATTACKS if name in found}
    strongest = found.get("autoattack")
    nrr = {} if not strongest else {"nrr": 2 * clean * strongest / (clean + strongest)}
    return {name: value for name, value in {**found, **weighted, **nrr}.items() if name != "worst of all"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        _run(given)
    except (ValueError, OSError, MissingLibraryError) as error:
        print(f"robustness: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m experiments robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--classifier", required=True, help="safetensors, one that ships, or robustbench:NAME"
    )
    parser.add_argument("--data", required=True, help="folder or npz file, see distill.images.labelled")
    parser.add_argument("--attack", nargs="*", default=list(COLUMNS), choices=ATTACKS)
    parser.add_argument("--eps", type=float, default=8, help="of 255")
    parser.add_argument("--images", type=int, help="test images, evenly over the classes; all by default")
    parser.add_argument("--autoattack-images", type=int, default=1000)
    parser.add_argument("--apgd-images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"))
    return parser


def _run(given: argparse.Namespace) -> None:
    model = _classifier(given.classifier).to(given.device)
    data = labelled(given.data, train=False)
    count = len(data) if given.images is None else given.images
    if not 1 <= count <= len(data):
        raise ValueError(f"there are {len(data)} test images; asked for {count}")
    if not 0 < given.eps <= 64:
        raise ValueError(f"eps is in steps of 1/255, such as 8; got {given.eps:g}")
    chosen = data[balanced(data.labels, count, given.seed)]
    settings = {key: str(value) for key, value in vars(given).items() if key not in PLACES}
    settings["weights"] = fingerprint(model)
    model = folded(model)
    given.out.mkdir(parents=True, exist_ok=True)
    attacks = columns(model, given.eps / 255, given.batch, given.seed)
    records: list[Record] = []
    for name in given.attack:
        some = {"autoattack": given.autoattack_images, "apgd": given.apgd_images}.get(name, count)
        part = chosen if some >= count else chosen[balanced(chosen.labels, some, given.seed)]
        found = evaluate(
            model,
            to_unit(part.pixels).to(given.device),
            part.labels.to(given.device),
            {name: attacks[name]},
            draws=1,
            batch_size=given.batch,
            seed=given.seed,
            settings={**settings, "images": len(part)},
            record=given.out / "records.jsonl",
            callback=lambda one: print(f"\r{one.attack} {one.index + 1}", end="", file=sys.stderr),
        )
        records += [one for one in found if one.attack != NULL or name == given.attack[0]]
    print(file=sys.stderr)
    rows = summarise(records, apart=ATTACKS)
    images, labels = to_unit(chosen.pixels[:16]), chosen.labels[:16]
    doubts = [*model_doubts(model, images.to(given.device), labels.to(given.device)), *doubts_of(rows)]
    report = {
        "settings": settings,
        "figures": figures(rows),
        "rows": [asdict(row) for row in rows],
        "doubts": doubts,
    }
    (given.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (given.out / "table.md").write_text(table(rows))
    print(table(rows), *doubts, sep="\n")


def _classifier(name: str) -> nn.Module:
    if name.startswith("robustbench:"):
        from experiments.robustbench import load_model

        return load_model(name.removeprefix("robustbench:")).eval()
    return cifar_network(name)
