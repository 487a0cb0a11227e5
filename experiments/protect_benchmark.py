"""What a thief's results lose to each protective method: by threat, and behind each counter-measure.

    python -m experiments protect-benchmark PICTURE... --methods mist "mist --survive jpeg,resize" \
        --threats img2img0.3 inpainting --purifiers none jpeg75 half jpeg75+half --out runs/benchmark

A method is written as on the command line of `protect`, its options behind it. Every picture is brought to
one size and protected once by each method; the versions lie as PNG in `--out` and are read back. The thief's
results from them are compared with those from the original by the same road, with equal noise and prompt. The
control is random-sign noise of the same budget. With `--owner` the pictures are protected with one model and
stolen with another, which is the usual case. Methods that need a mask get one that is drawn by code;
`inpainting` repaints around it, `inpainting-wider` and so on around other outlines of the same figure, which
the owner did not see. Methods that need a set get `--set` pictures at a time.

`rows.jsonl` has one line per picture, method, threat, counter-measure and seed; a stopped run goes on from
it. `summary.csv`, `table.md` and `plot.png` are made of it.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.choice import choose
from diffusion.model import DiffusionModel
from experiments.gallery import Budget, Gallery
from experiments.inpainting import SEEN
from experiments.protect_table import Row, plot, summarise, table, write_summary
from experiments.protection import CONTROL, PROMPT, read_rows
from imaging.perceptual import Lpips
from protect.method import ProtectionMethod
from protect.methods import METHODS
from protect.threats import create
from protect.verify.thief import Comparison, CounterMeasure, Thief, change, outcomes
from purify.chain import Chain

SINGLE = ("jpeg95", "jpeg85", "jpeg75", "jpeg65", "half", "blur", "crop10", "noise0.05", "quantize4")
PURIFIERS = ("none", *SINGLE, "adverse-cleaner", "jpeg75+half", "diffpure100", "gridpure")
FIRST_SEED = 101
"""Unlike 0, with which pictures are protected."""


@dataclass(frozen=True)
class Models:
    """The models by name, loaded when they are first needed."""

    denoiser: str
    painter: str
    """Of methods and threats that inpaint."""
    prior: str
    """Of purifiers."""
    device: str = "cpu"
    owner: str | None = None
    """What methods look through that do not inpaint, where it is not the thief's own model."""

    def load(self, name: str) -> DiffusionModel:
        return _load(name, self.device)

    def for_method(self, method: ProtectionMethod) -> DiffusionModel:
        model = self.load(self.painter if method.needs_inpainting else self.owner or self.denoiser)
        method.check(model)
        return model

    def identity(self) -> str:
        names = (self.denoiser, self.painter, self.prior, *([self.owner] if self.owner else []))
        return " ".join(choose(name).identity for name in names)


@cache
def _load(name: str, device: str) -> DiffusionModel:
    return choose(name).load(device=device, precision="float32")


def thief_of(
    name: str, models: Models, masks: Mapping[str, Tensor], seeds: Sequence[int], settings: Mapping[str, Any]
) -> Thief:
    """Return the thief of a name: of `protect.threats`, or `inpainting-` and another outline of `masks`."""
    outline = name.removeprefix("inpainting-") if name.startswith("inpainting-") else SEEN
    if outline not in masks:
        raise ValueError(f"there is no outline {outline!r}; available: {', '.join(masks)}")
    threat = create("inpainting" if name.startswith("inpainting") else name)
    model = models.load(models.painter if threat.inpaints else models.denoiser)
    own: dict[str, Any] = {"mask": 1 - masks[outline], **settings} if threat.inpaints else dict(settings)
    threat = replace(
        threat.suited(model), **{key: value for key, value in own.items() if hasattr(threat, key)}
    )
    threat.check(model)
    return Thief(threat, model, seeds)


def measure(
    gallery: Gallery,
    thieves: Callable[[str], Mapping[str, Thief]],
    methods: Sequence[str],
    counter_measures: Mapping[str, CounterMeasure],
    *,
    digests: Mapping[str, str],
    done: Sequence[Row] = (),
    lpips: Lpips | None = None,
) -> Iterator[list[Row]]:
    """Protect, purify, steal and compare; yields the rows of one comparison as it is made.

    Args:
        gallery: the pictures.
        thieves: returns, for a picture, the thieves by name.
        methods: names; the control comes first by itself.
        counter_measures: by name.
        digests: what figures depend on, by method.
        done: rows that are there already and not made again.
        lpips: measures the perceptual distance, too.
    """
    there = {replace(row, **_NO_FIGURES) for row in done}
    for picture, original in gallery.originals.items():
        roles = thieves(picture)
        missing = partial(_missing, there, picture, digests, {name: one.seeds for name, one in roles.items()})
        pairs = [(threat, counter) for threat in roles for counter in counter_measures]
        wanted = [each for each in (CONTROL, *methods) if any(missing(*pair, each) for pair in pairs)]
        versions = {method: gallery.version(picture, method) for method in wanted}
        for one in outcomes(roles, counter_measures, original, versions, wanted=missing):
            yield list(_rows(picture, one, roles[one.thief].seeds, digests[one.version], lpips))


_NO_FIGURES: dict[str, Any] = {"damage": 0, "psnr": 0, "lpips": None, "short": None, "price": None}


def _missing(
    there: Container[Row],
    picture: str,
    digests: Mapping[str, str],
    seeds: Mapping[str, Sequence[int]],
    threat: str,
    counter: str,
    method: str,
) -> bool:
    names = (picture, method, threat, counter)
    return any(
        Row(*names, seed, settings=digests[method], **_NO_FIGURES) not in there for seed in seeds[threat]
    )


def _rows(
    picture: str, one: Comparison, seeds: Sequence[int], digest: str, lpips: Lpips | None
) -> Iterator[Row]:
    """One row per seed; threats that make several pictures of one seed are averaged."""
    apart = change(one.made, one.original, region=one.region, lpips=lpips)
    damage, psnr, distance = ([getattr(each, name) for each in apart] for name in ("damage", "psnr", "lpips"))
    short = price = [None] * len(apart)
    if one.untouched is not None:
        short, price = (
            [each.damage for each in change(images, one.untouched, region=one.region)]
            for images in (one.made, one.original)
        )
    share = len(apart) // len(seeds)
    for place, seed in enumerate(seeds):
        own = slice(place * share, (place + 1) * share)
        columns = {"damage": damage, "psnr": psnr, "lpips": distance, "short": short, "price": price}
        figures: dict[str, Any] = {name: _mean(column[own]) for name, column in columns.items()}
        yield Row(picture, one.version, one.thief, one.counter_measure, seed, settings=digest, **figures)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        _run(given)
    except (ValueError, OSError) as error:
        print(f"protect-benchmark: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m experiments protect-benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--methods", nargs="*", default=None, metavar="NAME", help="all that the models suit")
    parser.add_argument("--threats", nargs="+", default=["img2img0.3"], metavar="NAME")
    parser.add_argument("--purifiers", nargs="+", default=list(PURIFIERS), metavar="WORDS")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--eps", type=float, default=8, help="of 255")
    parser.add_argument("--steps", type=int, default=100, help="of every method that does not say")
    parser.add_argument("--seeds", type=int, default=4, help="draws of the thief's noise")
    parser.add_argument("--set", type=int, default=4, help="pictures for methods that learn from several")
    parser.add_argument("--prompt", default=PROMPT, help="the thief's, for threats that edit")
    parser.add_argument("--guidance", type=float, help="the thief's")
    parser.add_argument("--edit-steps", type=int, help="of the thief's sampler")
    parser.add_argument("--model", default="builtin", help="the thief's, and the owner's")
    parser.add_argument("--owner", metavar="MODEL", help="what is protected with, if it is not the thief's")
    parser.add_argument("--painter", default="builtin-inpainting", help="model of what inpaints")
    parser.add_argument("--prior", default="builtin", help="model of purifiers")
    parser.add_argument("--lpips", metavar="FILE", help="weights of LPIPS on AlexNet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/protect-benchmark"))
    return parser


def _run(given: argparse.Namespace) -> None:
    models = Models(given.model, given.painter, given.prior, given.device, given.owner)
    lpips = None if given.lpips is None else Lpips.from_file(given.lpips)
    gallery = Gallery(
        given.pictures,
        models.for_method,
        Budget(given.side, given.eps / 255, given.steps),
        given.out / "pictures",
        identity=models.identity(),
        together=given.set,
        lpips=lpips,
    )
    settings = {"prompt": given.prompt, "guidance": given.guidance, "steps": given.edit_steps}
    settings = {key: value for key, value in settings.items() if value is not None}
    seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)

    def thieves(picture: str) -> dict[str, Thief]:
        masks = gallery.outlines(picture)
        return {name: thief_of(name, models, masks, seeds, settings) for name in given.threats}

    chains = {words: Chain(words, partial(models.load, given.prior)) for words in given.purifiers}
    counter_measures = {words: CounterMeasure(chain, chain.aligned) for words, chain in chains.items()}
    methods = _suiting(given.methods, gallery, models)
    told = json.dumps([settings, models.identity(), given.lpips is not None], sort_keys=True)
    digests = {name: _digest(told + gallery.digest(name)) for name in (CONTROL, *methods)}
    thieves(next(iter(gallery.originals)))  # what is wrong with a threat is wrong with it for every picture
    path = given.out / "rows.jsonl"
    given.out.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path, Row)
    with path.open("a") as file:
        for made in measure(
            gallery, thieves, methods, counter_measures, digests=digests, done=rows, lpips=lpips
        ):
            rows += made
            file.writelines(json.dumps(asdict(row)) + "\n" for row in made)
            file.flush()
            one = made[0]
            print(
                f"\r{one.picture} {one.counter_measure} {one.threat} {one.method}\033[K",
                end="",
                file=sys.stderr,
            )
    print(file=sys.stderr)
    asked = [
        row
        for row in rows
        if row.settings == digests.get(row.method)
        and row.picture in gallery.originals
        and row.threat in given.threats
        and row.counter_measure in counter_measures
        and row.seed in seeds
    ]
    _report(asked, gallery, (CONTROL, *methods), given.out)


def _suiting(names: Sequence[str] | None, gallery: Gallery, models: Models) -> list[str]:
    """The methods that were asked for, or all that the models suit; says which are left out and why."""
    if names is not None:
        for name in names:
            models.for_method(gallery.method(name))
        return list(names)
    found = []
    for name in METHODS:
        try:
            models.for_method(gallery.method(name))
        except (ValueError, OSError) as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
        else:
            found.append(name)
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _report(rows: Sequence[Row], gallery: Gallery, methods: Sequence[str], out: Path) -> None:
    order = {name: place for place, name in enumerate(methods)}
    found = summarise(sorted(rows, key=lambda row: order[row.method]))
    visible = [gallery.visible(picture, method) for method in methods for picture in gallery.originals]
    write_summary(found, out / "summary.csv")
    (out / "table.md").write_text(table(found, visible))
    plot(found, out / "plot.png")
    print(table(found, visible))
