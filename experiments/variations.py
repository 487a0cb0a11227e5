"""Train a clean classifier on a poisoned set, by diffusion variations of its pictures and distillation.

    python -m experiments variations --data CIFAR --trigger patch:size=3 --ratio 0.1 --t 50 100 200

A share of the training set is marked and given the target's label. A teacher is trained on it as it is. A
variation of each picture is made by noising and denoising it with an unconditional diffusion model, which
washes a trigger out, more or less. Then fresh students are trained: on the poisoned pictures with the
teacher (distillation alone), on variations with the labels, and on variations with both. The table has a row
for each and each strength `t`; `plot.png` shows success and accuracy over it. A stopped run goes on: the
teacher, sets of variations and rows are kept in `--out`, and the poisoned set as `poisoned.npz`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.load import load
from distill.classifier import Classifier
from distill.images import Pixels, labelled, to_unit, write_npz
from distill.losses import distilled
from experiments.command import completed
from experiments.networks import cifar_network
from experiments.repair import trigger_of
from imaging.whole import write_whole
from purify import DiffPure
from unlearn.measures import Measures, measure
from unlearn.triggers import Images, Labels, Trigger, poison
from unlearn.tuning import trained


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return completed("variations", _run, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments variations", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder or npz file, see distill.images.labelled")
    parser.add_argument("--test", help="where the test pictures are, if elsewhere")
    parser.add_argument("--limit", type=int, default=10_000, help="training pictures")
    parser.add_argument("--judged", type=int, help="test pictures; all without")
    parser.add_argument("--trigger", default="patch:size=3", help="as in experiments.repair")
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--t", type=int, nargs="+", default=[100], help="of 1000: how strong variations are")
    parser.add_argument("--steps", type=int, default=5, help="of each variation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/variations"))
    return parser


def _run(given: argparse.Namespace) -> None:
    trigger = trigger_of(given.trigger)
    given.out.mkdir(parents=True, exist_ok=True)
    record = Record(given.out / "rows.json", given)
    images, labels, test, classes = _pictures(given, trigger)
    judged = (to_unit(test.pixels).to(given.device), test.labels.to(given.device))

    def judge(network: nn.Module) -> Measures:
        return measure(network, *judged, trigger, target=given.target)

    teacher = _teacher(given, images, labels, classes)
    record.add("plain training", 0, lambda: judge(teacher))
    record.add(
        "distillation alone", 0, lambda: judge(_student(given, images, labels, classes, teacher=teacher))
    )
    for t in given.t:
        varied = to_unit(_varied(given, images, labels, t)).to(given.device)
        record.add("variations, labels", t, lambda made=varied: judge(_student(given, made, labels, classes)))
        record.add(
            "variations and distillation",
            t,
            lambda made=varied: judge(_student(given, made, labels, classes, teacher=teacher)),
        )
    write_whole(given.out / "table.md", table(record.rows) + "\n")
    plot(record.rows, given.out / "plot.png")
    print(table(record.rows))


class Record:
    """Rows in a file; what is there is not measured again.

    Raises ValueError if the file was written with other settings.
    """

    def __init__(self, path: Path, given: argparse.Namespace) -> None:
        kept = {key: str(value) for key, value in vars(given).items() if key not in ("out", "t", "device")}
        self._path, self._settings, self.rows = path, kept, list[dict[str, Any]]()
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != kept:
                raise ValueError(f"{path} was written with other settings: name another --out")
            self.rows = found["rows"]

    def add(self, name: str, t: int, measured: Any) -> None:
        """Measure a row, unless it is there, and write it down."""
        if any((row["name"], row["t"]) == (name, t) for row in self.rows):
            return
        found: Measures = measured()
        shown = {key: str(getattr(found, key)) for key in ("clean", "attack", "robust")}
        self.rows.append({"name": name, "t": t, "shown": shown, **asdict(found)})
        told = {"settings": self._settings, "rows": self.rows}
        write_whole(self._path, json.dumps(told, indent=1) + "\n")
        print(f"{name} {t}: clean {found.clean}, attack {found.attack}", file=sys.stderr, flush=True)


def _pictures(given: argparse.Namespace, trigger: Trigger) -> tuple[Images, Labels, Any, int]:
    train, test = labelled(given.data, train=True), labelled(given.test or given.data, train=False)
    generator = torch.Generator().manual_seed(given.seed)
    chosen = torch.randperm(len(train), generator=generator)[: given.limit]
    images, labels, _ = poison(
        to_unit(train.pixels[chosen]),
        train.labels[chosen],
        trigger,
        target=given.target,
        ratio=given.ratio,
        generator=generator,
    )
    path = given.out / "poisoned.npz"
    if not path.exists():  # for `experiments repair --poisoned`
        write_npz(path, (images * 255).round().to(torch.uint8), labels)
    if given.judged is not None:
        test = test[torch.randperm(len(test), generator=generator)[: given.judged]]
    return images.to(given.device), labels.to(given.device), test, int(train.labels.max()) + 1


def _teacher(given: argparse.Namespace, images: Images, labels: Labels, classes: int) -> nn.Module:
    path = given.out / "teacher.safetensors"
    if not path.exists():
        made = _student(given, images, labels, classes)
        made.save(path)
    return cifar_network(path).to(given.device).eval().requires_grad_(False)


def _student(
    given: argparse.Namespace,
    images: Images,
    labels: Labels,
    classes: int,
    *,
    teacher: nn.Module | None = None,
) -> Classifier:
    return fresh(
        given.network,
        images,
        labels,
        classes,
        epochs=given.epochs,
        learning_rate=given.learning_rate,
        batch_size=given.batch,
        seed=given.seed,
        teacher=teacher,
    )


def fresh(
    network: str,
    images: Images,
    labels: Labels,
    classes: int,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    teacher: nn.Module | None = None,
) -> Classifier:
    """Return a fresh network, trained where the pictures are, on pictures that are mirrored at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Classifier(network, classes).to(images.device)
    generator = torch.Generator().manual_seed(seed)

    def loss(some: Images, own: Labels) -> Tensor:
        turned = torch.rand(len(some), generator=generator).to(some.device) < 0.5
        some = torch.where(turned[:, None, None, None], some.flip(-1), some)
        said = student(some)
        if teacher is None:
            return F.cross_entropy(said, own)
        with torch.no_grad():
            taught = teacher(some)
        return distilled(taught, said, own).mean()

    trained(
        student,
        loss,
        images,
        labels,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        generator=generator,
    )
    return student.eval()


@torch.no_grad()
def _varied(given: argparse.Namespace, images: Images, labels: Labels, t: int) -> Pixels:
    """A variation of each picture, made once and kept."""
    path = given.out / f"variations_{t}.npz"
    if not path.exists():
        purifier = DiffPure(load(given.prior, device=given.device), t=t, steps=min(given.steps, t))
        made = []
        for part in torch.arange(len(images)).split(100):
            found = purifier(images[part.to(images.device)], seeds=given.seed + part)
            made.append((found * 255).round().to(torch.uint8).cpu())
        write_npz(path, torch.cat(made), labels.cpu())
    return labelled(path, train=True).pixels


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    heads = ("training", "t", "clean accuracy", "attack success", "robust accuracy")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    cells = ((row["name"], str(row["t"] or ""), *row["shown"].values()) for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw clean accuracy and attack success over the strength of variations; 0 is the poisoned set."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    starts = {"variations, labels": "plain training", "variations and distillation": "distillation alone"}
    for number, (name, start) in enumerate(starts.items()):
        own = sorted((row for row in rows if row["name"] in (name, start)), key=lambda row: row["t"])
        for key, style in (("attack", "-o"), ("clean", "--s")):
            shares = [100 * row[key]["share"] for row in own]
            axes.plot(
                [row["t"] for row in own], shares, style, ms=3, color=f"C{number}", label=f"{name}: {key}"
            )
    axes.set_xlabel("strength of variations, t of 1000")
    axes.set_ylabel("%")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
