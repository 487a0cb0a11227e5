"""Evaluate a classifier behind a purifier, honestly: null row, fresh draws, several attacks, doubts.

    python -m experiments evaluate --classifier weights.safetensors --data DATA --defense diffpure \
        --attack transfer bpda exact apgd-eot --images 128

writes `records.jsonl` (one line per image and attack; a stopped run goes on from it), `report.json`,
`table.md` and `report.png` into `--out`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks import Linf, cross_entropy, pgd
from attacks.adaptive import BPDA, Exact, Expected, Hammer, Surrogate, deviated
from attacks.apgd import apgd
from attacks.ball import L2, Ball
from attacks.checks import model_doubts, row_doubts
from attacks.evaluate import Attack, Record, Row, evaluate, summarise, table
from attacks.losses import cross_entropy as cross_entropy_of
from attacks.losses import margin
from attacks.lowfrequency import Distance, low_frequency
from attacks.square import square
from diffusion.load import fingerprint, load
from diffusion.model import DiffusionModel
from experiments.baselines import NOT_ELIGIBLE, baselines
from experiments.cifar import cifar10
from experiments.networks import cifar_network
from imaging.perceptual import Lpips
from purify import GDMP, DiffPure, FreqPure, Jpeg, ManiPure, PurifiedClassifier, Purifier


@dataclass(frozen=True)
class Budget:
    """What the attacker may do."""

    eps: float = 8 / 255
    norm: str = "Linf"
    steps: int = 20
    draws: int = 10
    """Draws of the defence per gradient."""
    micro_batch: int = 256

    @property
    def ball(self) -> Ball:
        return Linf(self.eps) if self.norm == "Linf" else L2(self.eps)

    @property
    def step_size(self) -> float:
        """A quarter of the radius, and so enough steps to cross the ball several times."""
        return self.eps / 4


Defense = Callable[[DiffusionModel, int, int], Purifier]
DEFENSES: dict[str, Defense] = {
    "diffpure": lambda model, t, steps: DiffPure(model, t=t, steps=steps),
    "diffpure-ddim": lambda model, t, steps: DiffPure(model, t=t, steps=steps, sampler="ddim"),
    "diffpure-sde": lambda model, t, steps: DiffPure(model, t=t, steps=steps, sampler="sde"),
    "gdmp": lambda model, t, steps: GDMP(model, t=t, steps=steps, rounds=1),
    "freqpure": lambda model, t, steps: FreqPure(model, t=t, steps=steps),
    "mani-literal": lambda model, t, steps: ManiPure(model, t=t, steps=steps, mode="literal"),
    "mani-spatial": lambda model, t, steps: ManiPure(model, t=t, steps=steps, mode="spatial"),
    "mani-spectral": lambda model, t, steps: ManiPure(model, t=t, steps=steps, mode="spectral"),
    "jpeg": lambda model, t, steps: Jpeg(75),
}


def attacks_on(
    classifier: nn.Module,
    purifier: Purifier | None,
    cheaper: Purifier | None,
    budget: Budget,
    lpips: Distance | None = None,
) -> dict[str, Attack]:
    """Every attack by name; those that need a purifier are left out where there is none.

    `cheaper` is what "surrogate" differentiates in the purifier's place, `lpips` what bounds "lf".
    """
    ball = budget.ball

    def ascend(objective: Any, images: Tensor) -> Tensor:
        return pgd(objective, images, ball, steps=budget.steps, step_size=budget.step_size)

    def climb(objective: Any, images: Tensor, redraw: Callable[[], None] | None = None) -> Tensor:
        return apgd(objective, images, ball, eps=budget.eps, steps=budget.steps, redraw=redraw)

    def transfer(images: Tensor, labels: Tensor) -> Tensor:
        return ascend(cross_entropy(classifier, labels), images)

    options: dict[str, Any] = {"draws": budget.draws, "micro_batch": budget.micro_batch}
    found: dict[str, Attack] = {}
    if lpips is not None:

        def lf(images: Tensor, labels: Tensor) -> Tensor:
            model = PurifiedClassifier(Exact(purifier), classifier) if purifier else classifier
            objective = Expected(model, labels, margin, **(options if purifier else {"draws": 1}))
            return low_frequency(objective, images, lpips, steps=budget.steps)

        found["lf"] = lf
    if purifier is None:
        found["pgd"] = transfer
        found["apgd"] = lambda images, labels: climb(cross_entropy(classifier, labels), images)
        return found

    def through(gradient: nn.Module) -> Attack:
        model = PurifiedClassifier(gradient, classifier)
        return lambda images, labels: ascend(Expected(model, labels, cross_entropy_of, **options), images)

    def apgd_eot(images: Tensor, labels: Tensor) -> Tensor:
        model = PurifiedClassifier(Exact(purifier), classifier)
        objective = Expected(model, labels, margin, fixed=True, **options)
        return climb(objective, images, objective.redraw)

    def diffhammer(images: Tensor, labels: Tensor) -> Tensor:
        objective = Hammer(purifier, classifier, labels, ball, eps=budget.eps, draws=budget.draws)
        return climb(objective, images)

    def squared(images: Tensor, labels: Tensor) -> Tensor:
        model = PurifiedClassifier(purifier, classifier)
        objective = Expected(model, labels, margin, **options)
        return square(objective, images, eps=budget.eps, queries=10 * budget.steps)

    found |= {
        "transfer": transfer,
        "bpda": through(BPDA(purifier)),
        "exact": through(Exact(purifier)),
        "apgd-eot": apgd_eot,
        "diffhammer": diffhammer,
        "square": squared,
    }
    if cheaper is not None:
        found["surrogate"] = through(Surrogate(purifier, cheaper))
    if isinstance(purifier, DiffPure):

        def kang(images: Tensor, labels: Tensor) -> Tensor:
            score = deviated(purifier, classifier, loss=cross_entropy_of)
            return ascend(Expected.of(score, labels, **options), images)

        found["kang"] = kang
    return found


BARE = ("pgd", "apgd")
ATTACKS = ("transfer", "bpda", "surrogate", "exact", "apgd-eot", "diffhammer", "kang", "square", "lf", *BARE)
APART = ("lf",)
"""Attacks that keep to another bound than the norm, and so have no part in the worst of all."""
PLACES = ("out", "device", "attack", "batch", "micro_batch", "lpips")
"""What figures do not depend on."""


def balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` images, drawn at random and as many of each class as can be."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    ranks = torch.zeros(len(labels), dtype=torch.long)
    for label in labels.unique():
        own = order[labels[order] == label]
        ranks[own] = torch.arange(len(own))
    return order[ranks[order].argsort(stable=True)][:count].sort().values


def report(
    records: Sequence[Record], settings: dict[str, Any], indices: Tensor, doubts: Sequence[str]
) -> dict[str, Any]:
    """Everything that a reader needs to judge the figures, as plain data."""
    rows = summarise(records, apart=APART)
    return {
        "category": "adaptive test-time",
        "settings": settings,
        "indices": indices.tolist(),
        "rows": [asdict(row) for row in rows],
        "doubts": [*doubts, *row_doubts(rows)],
        "baselines": baselines(settings["norm"]),
        "note": NOT_ELIGIBLE,
    }


def plot(rows: Sequence[Row], path: Path) -> None:
    """One group of bars per attack: average, worst of all draws, majority."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(1.5 + 1.1 * len(rows), 3.6), layout="constrained")
    for place, name in enumerate(("average", "worst", "majority")):
        heights = [100 * getattr(row, name) for row in rows]
        widths = [100 * row.half_widths[place] for row in rows]
        left = [number + 0.27 * (place - 1) for number in range(len(rows))]
        axes.bar(left, heights, 0.25, yerr=widths, capsize=2, label=name)
    axes.set_xticks(range(len(rows)), [row.attack for row in rows], rotation=20, ha="right")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        _run(given)
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m experiments evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--classifier",
        default="cifar10-natural",
        help="safetensors of a CIFAR ResNet, one that ships, or robustbench:NAME",
    )
    parser.add_argument("--data", required=True, type=Path, help="folder with CIFAR-10")
    parser.add_argument("--defense", default="none", choices=("none", *DEFENSES))
    parser.add_argument("--prior", default="cifar10", help="diffusion model: alias, folder or hub id")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the prior")
    parser.add_argument("--t", type=int, default=100, help="steps of the schedule to noise")
    parser.add_argument("--steps", type=int, default=10, help="network calls on the way back")
    parser.add_argument("--surrogate-steps", type=int, default=2, help="those of the surrogate")
    parser.add_argument(
        "--attack", nargs="*", default=["transfer", "bpda", "exact", "apgd-eot"], choices=ATTACKS
    )
    parser.add_argument("--eps", type=float, default=8, help="of 255 for Linf; as it is for L2")
    parser.add_argument("--norm", default="Linf", choices=("Linf", "L2"))
    parser.add_argument(
        "--lpips", metavar="FILE", help="safetensors of LPIPS on AlexNet: measures every attack and bounds lf"
    )
    parser.add_argument("--attack-steps", type=int, default=20)
    parser.add_argument("--eot", type=int, default=10, help="draws per gradient")
    parser.add_argument("--micro-batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--draws", type=int, default=10, help="fresh draws that judge")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"))
    return parser


def _classifier(name: str) -> nn.Module:
    if name.startswith("robustbench:"):
        from experiments.robustbench import load_model

        return load_model(name.removeprefix("robustbench:"))
    return cifar_network(name)


def _run(given: argparse.Namespace) -> None:
    if "lf" in given.attack and given.lpips is None:
        raise ValueError("lf keeps to a perceptual distance: name its weights with --lpips FILE")
    lpips = None if given.lpips is None else Lpips.from_file(given.lpips).to(given.device)
    classifier = _classifier(given.classifier).to(given.device)
    pictures, labels = cifar10(given.data, train=False)
    if not 1 <= given.images <= len(labels):
        raise ValueError(f"there are {len(labels)} test images; asked for {given.images}")
    indices = balanced(labels, given.images, given.seed)
    images, labels = (pictures[indices].float() / 255).to(given.device), labels[indices].to(given.device)
    purifier, cheaper, prior = None, None, None
    if given.defense != "none":
        prior = load(given.prior, device=given.device, dtype=getattr(torch, given.dtype))
        make = DEFENSES[given.defense]
        purifier, cheaper = make(prior, given.t, given.steps), make(prior, given.t, given.surrogate_steps)
    budget = Budget(
        given.eps / 255 if given.norm == "Linf" else given.eps,
        given.norm,
        given.attack_steps,
        given.eot,
        given.micro_batch,
    )
    available = attacks_on(classifier, purifier, cheaper, budget, lpips)
    wrong = [name for name in given.attack if name not in available]
    if wrong:
        names = ", ".join(available)
        raise ValueError(f"{wrong[0]!r} does not apply to {given.defense!r}; available: {names}")
    settings = {key: str(value) for key, value in vars(given).items() if key not in PLACES}
    settings["prior weights"] = fingerprint(prior) if prior is not None else ""
    if lpips is not None:
        settings["lpips weights"] = fingerprint(lpips)
    model = classifier if purifier is None else PurifiedClassifier(purifier, classifier)
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(given.seed)
    records = evaluate(
        model,
        images,
        labels,
        {name: available[name] for name in given.attack},
        draws=given.draws,
        batch_size=given.batch,
        seed=given.seed + 1,
        settings=settings,
        lpips=lpips,
        record=given.out / "records.jsonl",
        callback=lambda one: print(f"\r{one.attack} {one.index + 1}/{len(images)}", end="", file=sys.stderr),
    )
    print(file=sys.stderr)
    doubts = model_doubts(model, images[:16], labels[:16])
    rows = summarise(records, apart=APART)
    found = report(records, settings, indices, doubts)
    (given.out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.out / "table.md").write_text(table(rows))
    plot(rows, given.out / "report.png")
    print(table(rows), *found["doubts"], NOT_ELIGIBLE, sep="\n")
