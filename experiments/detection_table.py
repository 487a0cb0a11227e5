"""Detectors beside each other: on pictures of their own kind, of other generators, and after handling.

    python -m experiments detection-table --detector distildire=runs/distildire/detector spectrum=KEPT \
        --data FOLDER --other samples=OTHER --handling none jpeg-75 half --out runs/detection

Every detector was fitted and calibrated before; thresholds of 1 % and 5 % come from the part of `--data`
that is held out for calibration, figures from the part that is judged on (the same parts as in training, see
`experiments.detection_data`), and from all pictures of each other set. Handling comes after equalisation, and
features are computed after handling. It writes `table.md` and `plot.png`, and `rows.jsonl`, from which a
stopped run goes on; what the files of each set give away is printed beside the figures.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import numpy as np
import torch

from detect.audit import audit
from detect.calibration import THRESHOLD
from detect.detector import Detector, load
from detect.distildire import DiffusionDetector
from detect.equalise import LEVELS, Equaliser, Level
from detect.judging import Survey
from detect.layouts import read_layout
from detect.metrics import Scorecard, calibration_error, scorecard
from experiments.audit import progress
from experiments.detection_data import EqualisedPictures
from imaging.picture import Images
from imaging.transforms import gaussian_blur, jpeg, resize
from imaging.whole import write_whole

HANDLINGS: dict[str, Callable[[Images], Images]] = {
    "none": lambda images: images,
    "jpeg-90": partial(jpeg, quality=90),
    "jpeg-75": partial(jpeg, quality=75),
    "jpeg-50": partial(jpeg, quality=50),
    "three-quarters": partial(resize, scale=0.75),
    "half": partial(resize, scale=0.5),
    "blur": partial(gaussian_blur, sigma=1.0),
    "chain": lambda images: jpeg(resize(jpeg(resize(images, 0.6), 80), 0.8), 70),
}
"""What happens to pictures on their way; results are rounded to the levels of a file."""


@dataclass(frozen=True, kw_only=True)
class Row(Scorecard):
    """One detector on one set after one handling."""

    detector: str
    identity: str
    pictures: str
    handling: str
    uncalibrated_error: float
    """The expected calibration error of the bare logit."""
    milliseconds: float
    """For each picture, in batches, with everything that is computed of it."""


@dataclass(frozen=True)
class Part:
    """Pictures with labels and source groups."""

    name: str
    images: Images
    labels: np.ndarray
    groups: list[str]

    @classmethod
    def all_of(cls, name: str, pictures: EqualisedPictures) -> list[Self]:
        """Return a set, and where it names several generators the pictures of each beside all real ones."""
        images, labels = pictures.images(), pictures.labels.numpy()
        found = [cls(name, images, labels, pictures.groups)]
        sources = np.array([each or "" for each in pictures.sources])
        generators = sorted({str(each) for each in sources[labels == 1]} - {""})
        if len(generators) > 1:
            found += [found[0]._only(each, (labels == 0) | (sources == each)) for each in generators]
        return found

    def _only(self, source: str, chosen: np.ndarray) -> Self:
        groups = [group for group, taken in zip(self.groups, chosen, strict=True) if taken]
        return replace(
            self,
            name=f"{self.name}, {source}",
            images=self.images[chosen],
            labels=self.labels[chosen],
            groups=groups,
        )

    @cached_property
    def key(self) -> str:
        """The name, and eight hexadecimal digits that change with the pixels."""
        digest = hashlib.sha256((self.images * 255).round().to(torch.uint8).numpy().tobytes())
        return f"{self.name} {digest.hexdigest()[:8]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        rows = _run(given)
    except (ValueError, OSError) as error:
        print(f"detection-table: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser("python -m experiments detection-table", description=about)
    parser.add_argument("--detector", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", required=True, help="the set whose held-out and judged parts are used")
    parser.add_argument("--other", nargs="*", default=[], metavar="NAME=FOLDER", help="judged whole")
    parser.add_argument("--level", choices=LEVELS, default="codec-equalised")
    parser.add_argument("--side", type=int, default=256, help="of pictures after codec+size-equalised")
    parser.add_argument("--held-out", type=float, default=0.25)
    parser.add_argument("--judged", type=float, default=0.3)
    parser.add_argument("--handling", nargs="+", choices=HANDLINGS, default=["none", "jpeg-75", "half"])
    parser.add_argument("--maps", help="folder of maps that training kept")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/detection"))
    return parser


def _run(given: argparse.Namespace) -> list[Row]:
    detectors = {name: load(folder).to(given.device) for name, folder in map(_named, given.detector)}
    for detector in detectors.values():
        detector.calibrated()
        if given.maps and isinstance(detector, DiffusionDetector):
            detector.remember(given.maps)
    surveyed = _surveyed(given.data, given.level, given.side)
    equaliser = Equaliser(level=given.level, side=given.side, widest=surveyed.widest_window(given.side))
    chosen = surveyed.plan.parts(held_out=given.held_out, judged=given.judged)
    held_out = EqualisedPictures(surveyed, chosen.calibrate, equaliser)
    parts = Part.all_of("its own", EqualisedPictures(surveyed, chosen.judge, equaliser))
    for name, folder in map(_named, given.other):
        other = _surveyed(folder, given.level, given.side)
        own = replace(equaliser, widest=other.widest_window(given.side))
        kept = np.flatnonzero(other.plan.kept)
        parts += Part.all_of(name, EqualisedPictures(other, kept, own))
    given.out.mkdir(parents=True, exist_ok=True)
    journal = given.out / "rows.jsonl"
    known = _known(journal)
    rows: list[Row] = []
    real = held_out.images()[held_out.labels == 0]
    for name, detector in detectors.items():
        identity = f"{detector.identity} {detector.calibrated().identity}"
        held: np.ndarray | None = None
        for part in parts:
            for handling in given.handling:
                row = known.get((identity, part.key, handling))
                if row is None:
                    if held is None:
                        held = detector.predict_proba(real.to(given.device))[:, 1].numpy()
                    row = judge(detector, part, handling, held, name, identity, given.device)
                    with journal.open("a") as file:
                        file.write(json.dumps(asdict(row)) + "\n")
                rows.append(replace(row, detector=name, pictures=part.name))
    write_whole(given.out / "table.md", table(rows) + "\n")
    plot(rows, given.out / "plot.png")
    return rows


def judge(
    detector: Detector,
    part: Part,
    handling: str,
    held: np.ndarray,
    name: str,
    identity: str,
    device: str = "cpu",
) -> Row:
    """Return the figures of a calibrated detector on pictures after one handling.

    `held` are its probabilities of calibration's real pictures, not handled; `name` and `identity` are what
    the row says of the detector.
    """
    images = (HANDLINGS[handling](part.images).clamp(0, 1) * 255).round() / 255
    calibration = detector.calibrated()
    started = time.perf_counter()
    logits = detector.scores(images.to(device))
    spent = time.perf_counter() - started
    found = scorecard(
        part.labels,
        calibration.probabilities(logits).numpy(),
        threshold=THRESHOLD,
        calibration_real=held,
        groups=part.groups,
    )
    return Row(
        **asdict(found),
        detector=name,
        identity=identity,
        pictures=part.key,
        handling=handling,
        uncalibrated_error=calibration_error(part.labels, torch.sigmoid(logits).numpy()),
        milliseconds=1000 * spent / len(images),
    )


def table(rows: Iterable[Row]) -> str:
    """Return rows as a Markdown table."""
    heads = ["detector", "pictures", "handling", "AUROC (95 %)", "balanced accuracy", "real right"]
    heads += ["generated right", "found at 1 %", "at 5 %", "ECE, uncalibrated", "ms"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        low, high = row.auroc_interval
        lines.append(
            f"| {row.detector} | {row.pictures} ({row.real} + {row.generated}) | {row.handling} "
            f"| {row.auroc:.3f} ({low:.3f} to {high:.3f}) | {100 * row.balanced_accuracy:.1f} "
            f"| {100 * row.real_right:.1f} | {100 * row.generated_right:.1f} "
            f"| {100 * row.tpr_at_1:.1f} ({100 * row.fpr_at_1:.1f} false) "
            f"| {100 * row.tpr_at_5:.1f} ({100 * row.fpr_at_5:.1f} false) "
            f"| {row.calibration_error:.3f}, {row.uncalibrated_error:.3f} | {row.milliseconds:.1f} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw AUROC, balanced accuracy and calibration error of each detector over sets and handlings."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = list(dict.fromkeys((row.pictures, row.handling) for row in rows))
    figure, axes = pyplot.subplots(3, figsize=(3 + 0.6 * len(columns), 8), layout="constrained", sharex=True)
    names = ("auroc", "balanced_accuracy", "calibration_error")
    for place, name in zip(axes, names, strict=True):
        for detector in dict.fromkeys(row.detector for row in rows):
            own = [row for row in rows if row.detector == detector]
            at = [columns.index((row.pictures, row.handling)) for row in own]
            heights = [getattr(row, name) for row in own]
            errors = None
            if name == "auroc":
                low, high = zip(*(row.auroc_interval for row in own), strict=True)
                errors = [np.subtract(heights, low), np.subtract(high, heights)]
            place.errorbar(at, heights, yerr=errors, marker="o", ms=3, lw=1, capsize=2, label=detector)
        place.set_ylabel(name.replace("_", " "))
        if name != "calibration_error":
            place.axhline(0.5, color="black", linestyle="--", lw=0.8)  # what guessing reaches
    words = [", ".join(column) for column in columns]
    axes[-1].set_xticks(range(len(columns)), words, rotation=30, ha="right")
    axes[0].legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _surveyed(folder: str, level: Level, side: int) -> Survey:
    """Read a set, and say what its files give away before any figure of it is shown."""
    surveyed = Survey.of(read_layout(folder), progress=progress())
    found = audit(surveyed, levels=[level], side=side, progress=progress()).levels[0]
    marks = f" (contaminated: {', '.join(found.contaminated)})" if found.contaminated else ""
    print(
        f"{folder}, {level}: everything about the files reaches AUROC {found.leaks[-1].auroc:.3f}{marks}, "
        f"the spectrum {found.spectrum.auroc:.3f}, shuffled labels {found.control:.3f}"
    )
    return surveyed


def _known(journal: Path) -> dict[tuple[str, str, str], Row]:
    if not journal.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in journal.read_text().splitlines()]
    return {(row.identity, row.pictures, row.handling): row for row in rows}


def _named(given: str) -> tuple[str, str]:
    name, equals, folder = given.partition("=")
    if not (name and equals and folder):
        raise ValueError(f"expected NAME=FOLDER; got {given!r}")
    return name, folder
