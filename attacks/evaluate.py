"""How often a classifier is right after an attack, told so that luck cannot be taken for success or defence.

A randomised classifier has no single robust accuracy. Each attack is finished first; then its images are
classified by draws that it never saw, and so are the originals: the null row says how much of a drop is luck.
What is kept is per image and per draw; every figure is computed from that.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from attacks.adaptive.expected import Randomised, with_seeds
from attacks.ball import Images
from attacks.losses import Labels
from attacks.lowfrequency import Distance

Attack = Callable[[Images, Labels], Images]
Predictions = Int[Tensor, "batch draws"]

NULL = "null"
"""The attack that changes nothing; in every report."""


@dataclass(frozen=True)
class Record:
    """What became of one image under one attack."""

    index: int
    label: int
    attack: str
    predictions: tuple[int, ...]
    """The class that each fresh draw said."""
    others: tuple[int, ...]
    """As many further draws, by which the worst attack of an image is chosen."""
    majority: int
    """The class that `predictions` elect, ties going to the likelier class."""
    linf: float
    """Largest change, in 1/255."""
    l2: float
    """Euclidean norm of the change, of images in [0, 1]."""
    seconds: float
    settings: str
    """Digest of what the figures depend on, see `evaluate`."""
    lpips: float | None = None
    """Perceptual distance from the original, where it was measured."""

    @property
    def correct(self) -> float:
        """The share of draws that are right."""
        return self._share(self.predictions)

    @property
    def correct_others(self) -> float:
        """The share of further draws that are right."""
        return self._share(self.others)

    def _share(self, said: Sequence[int]) -> float:
        return sum(one == self.label for one in said) / len(said)


@dataclass(frozen=True)
class Row:
    """The figures of one attack, as shares of all images, those misclassified without an attack included."""

    attack: str
    images: int
    draws: int
    average: float
    """One anonymous draw."""
    worst: float
    """Right in every draw: the attacker may try again."""
    majority: float
    """The vote of all draws: the deployed system."""
    half_widths: tuple[float, float, float]
    """Half of each figure's 95 % interval over images."""
    linf: float
    """The largest of any image, as `l2` and `lpips`."""
    l2: float
    lpips: float | None
    seconds: float


def evaluate(
    model: nn.Module | Randomised,
    images: Images,
    labels: Labels,
    attacks: Mapping[str, Attack],
    *,
    draws: int = 10,
    batch_size: int = 64,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    lpips: Distance | None = None,
    record: Path | None = None,
    callback: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Run attacks on a classifier and judge them by fresh draws.

    Args:
        model: classifier of images in [0, 1]; how its randomness is settled: see
            `attacks.adaptive.with_seeds`.
        images: float [n, channels, height, width] in [0, 1].
        labels: their classes [n].
        attacks: by name, functions of a batch and its labels that return images; "null" is always added.
        draws: fresh draws per image, on attacked and on original images alike.
        batch_size: images attacked together.
        seed: of the draws that judge. Attacks must not draw from it.
        settings: whatever else figures depend on (names, radius, steps); digested into each record.
        lpips: measures the perceptual distance of attacked images from the originals; not measured if None.
        record: a JSON-lines file that each record is appended to; what it already holds for the same
            settings is not run again, so a stopped evaluation goes on where it was.
        callback: called with each new record.

    Raises:
        ValueError: for no draws, labels that do not match, or images out of range.
    """
    _check(images, labels, draws)
    digest = _digest({**(settings or {}), "draws": draws, "seed": seed})
    done = {(one.attack, one.index): one for one in read_records(record) if one.settings == digest}
    decide, records = with_seeds(model), []
    for name, attack in {NULL: _nothing, **attacks}.items():
        for part in torch.arange(len(images)).split(batch_size):
            missing = part[[(name, int(i)) not in done for i in part]]
            made = _attacked(decide, images, labels, missing, name, attack, draws, seed, digest, lpips)
            for one in made:
                done[name, one.index] = one
                if record is not None:
                    with record.open("a") as file:
                        file.write(json.dumps(asdict(one)) + "\n")
                if callback is not None:
                    callback(one)
            records.extend(done[name, int(i)] for i in part)
    return records


def _attacked(
    decide: Randomised,
    images: Images,
    labels: Labels,
    indices: Int[Tensor, " part"],
    name: str,
    attack: Attack,
    draws: int,
    seed: int,
    digest: str,
    lpips: Distance | None,
) -> Iterator[Record]:
    if not len(indices):
        return
    own, truth, start = images[indices], labels[indices], time.perf_counter()
    moved = attack(own, truth).detach()
    if moved.shape != own.shape or not torch.isfinite(moved).all():
        raise ValueError(f"the attack {name!r} returned images of another shape, or not finite")
    seconds = (time.perf_counter() - start) / len(indices)
    said, probabilities = judged(decide, moved, indices, draws=2 * draws, seed=seed)
    counts = torch.nn.functional.one_hot(said[:, :draws], probabilities.shape[1]).sum(1)
    elected = (counts + probabilities * (1 - 1e-6)).argmax(1)
    delta = (moved - own).flatten(1)
    with torch.no_grad():
        apart = None if lpips is None else lpips(moved, own)
    for row, index in enumerate(indices.tolist()):
        yield Record(
            index,
            int(truth[row]),
            name,
            tuple(said[row, :draws].tolist()),
            tuple(said[row, draws:].tolist()),
            int(elected[row]),
            round(float(delta[row].abs().max()) * 255, 4),
            round(float(delta[row].norm()), 5),
            round(seconds, 4),
            digest,
            None if apart is None else round(float(apart[row]), 5),
        )


@torch.no_grad()
def judged(
    decide: Randomised, images: Images, indices: Int[Tensor, " batch"], *, draws: int, seed: int
) -> tuple[Predictions, Tensor]:
    """Return what each of `draws` says of each image, and the mean probabilities of the first half.

    The noise of an image depends on `seed`, the draw and the image's index, and so is the same in every
    evaluation of this `seed`, whatever the attack and the batch.
    """
    generator = torch.Generator().manual_seed(seed)
    said, probabilities, counted = [], torch.zeros(()), max(draws // 2, 1)
    for number in range(draws):
        logits = decide(images, torch.randint(2**61, (1,), generator=generator) + indices)
        said.append(logits.argmax(1))
        if number < counted:
            probabilities = probabilities.to(logits) + logits.softmax(1) / counted
    return torch.stack(said, 1), probabilities


def summarise(records: Sequence[Record], *, apart: Sequence[str] = ()) -> list[Row]:
    """Return one row per attack, and, if there are several, the worst one of each image.

    Attacks named in `apart` keep to another bound; they get a row and take no part in the worst.

    The worst attack of an image is chosen on other draws than it is scored on: choosing and scoring on the
    same ones would count luck as success once more.
    """
    groups: dict[str, list[Record]] = {}
    for one in records:
        groups.setdefault(one.attack, []).append(one)
    rows = [_row(name, group) for name, group in groups.items()]
    real = [group for name, group in groups.items() if name not in (NULL, *apart)]
    if len(real) > 1:
        by_image = zip(*(sorted(group, key=lambda one: one.index) for group in real), strict=True)
        chosen = [min(tried, key=lambda one: one.correct_others) for tried in by_image]
        rows.append(_row("worst of all", chosen))
    return rows


def _row(name: str, records: Sequence[Record]) -> Row:
    correct = torch.tensor([one.correct for one in records])
    elected = torch.tensor([float(one.majority == one.label) for one in records])
    (average, one), (worst, two), (majority, three) = map(
        _interval, (correct, (correct == 1).float(), elected)
    )
    distances = [one.lpips for one in records if one.lpips is not None]
    return Row(
        name,
        len(records),
        len(records[0].predictions),
        average,
        worst,
        majority,
        (one, two, three),
        max(one.linf for one in records),
        max(one.l2 for one in records),
        max(distances) if len(distances) == len(records) else None,
        sum(one.seconds for one in records),
    )


def _interval(values: Tensor) -> tuple[float, float]:
    """The mean over images and half the width of its 95 % interval."""
    width = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 1.0
    return float(values.mean()), width


def table(rows: Sequence[Row]) -> str:
    """Return rows as Markdown, in per cent with 95 % half-widths; the null row belongs to every figure."""
    draws, measured = rows[0].draws, any(row.lpips is not None for row in rows)
    far = ["linf", "l2", "lpips"] if measured else ["linf", "l2"]
    heads = ["attack", "images", "average", f"worst of {draws}", f"majority of {draws}", *far, "seconds"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [
            f"{100 * value:.1f} ± {100 * width:.1f}"
            for value, width in zip((row.average, row.worst, row.majority), row.half_widths, strict=True)
        ]
        cells += [f"{row.linf:.2f}", f"{row.l2:.3f}"]
        if measured:
            cells.append("" if row.lpips is None else f"{row.lpips:.4f}")
        lines.append(f"| {row.attack} | {row.images} | {' | '.join(cells)} | {row.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def read_records(path: Path | None) -> list[Record]:
    """Return the records of a JSON-lines file, none if there is no file; a line cut short is left out."""
    if path is None or not path.exists():
        return []
    return list(_parsed(path.read_text().splitlines()))


def _parsed(lines: Iterable[str]) -> Iterator[Record]:
    for line in lines:
        try:
            fields = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed while it wrote
        fields["predictions"], fields["others"] = tuple(fields["predictions"]), tuple(fields["others"])
        yield Record(**fields)


def _digest(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _nothing(images: Images, labels: Labels) -> Images:
    return images


def _check(images: Images, labels: Labels, draws: int) -> None:
    if draws < 1:
        raise ValueError(f"at least one draw is needed; got {draws}")
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"one label per image is needed; got {len(images)} images and {len(labels)} labels")
    low, high = (float(value) for value in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images to evaluate on lie in [0, 1]; got {low:.4g} to {high:.4g}")
