"""What a thief learns from pictures of one subject, the fewer of which are protected.

    python -m experiments personalisation PICTURE... --methods aspl mist --threat low-rank

The pictures are of one subject or in one style. `--held-out` of them nobody trains on. Of the others 0, 25,
50, 75 or 100 % are protected, the thief trains on the mixture, and two things are measured, for some seeds:

- `loss`: how well what was learned denoises the clean held-out pictures, at fixed times and noises that
  training never drew. What training on clean pictures takes away of it is what there is to learn; `learned`
  is the share of that which is taken away all the same: 1 where protection hinders nothing, 0 where the model
  is left as it was, below 0 where it is worse.
- `distance`: how far the thief's samples are from all clean pictures: the squared maximum mean discrepancy
  with KID's kernel (Binkowski et al., ICLR 2018, arXiv 1801.01401), of what the middle of the untouched
  denoiser says. Its features are not Inception's and its values no KID.

Beside the methods, at the largest share, stands the control: random-sign noise of the same budget.
`rows.jsonl` is appended to, so that a stopped run goes on; `table.md` and `plot.png` are made of it.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from diffusion.choice import choose
from diffusion.features import kernel_distance, summaries
from diffusion.losses import denoising_loss
from diffusion.model import DiffusionModel
from diffusion.schedule import Latents
from experiments.gallery import Budget, Gallery
from experiments.protection import CONTROL, read_rows
from protect.threats import create
from protect.threats.learning import Learned, Learning

SHARES = (0, 25, 50, 75, 100)
FIRST_SEED = 101
BANK = range(25, 1000, 50)
"""Times, of 1000, at which a loss is measured."""
DEPTH = 200
"""The time, of 1000, at which features are taken."""


@dataclass(frozen=True)
class Row:
    """What one training learned."""

    method: str
    share: int
    """Protected pictures, in per cent."""
    seed: int
    loss: float
    untrained: float
    """The loss before training."""
    distance: float
    settings: str
    """Digest of what the figures depend on."""


class Exhibition:
    """Clean pictures that judge what was learned."""

    def __init__(self, model: DiffusionModel, held_out: Latents, clean: Latents, threat: Learning) -> None:
        self._model, self._held_out, self._threat = model, held_out, threat
        self._clean = summaries(model, clean, time=DEPTH)
        self.untrained = self.loss(Learned(model, model.condition))

    @torch.no_grad()
    def loss(self, learned: Learned) -> float:
        """The denoising loss of the held-out pictures under the caption of training."""
        generator, told = torch.Generator().manual_seed(0), learned.condition([self._threat.template])
        noise = torch.randn((len(BANK), *self._held_out.shape[1:]), generator=generator).to(self._held_out)
        t = (torch.tensor(BANK) * len(self._model.schedule) // 1000).to(noise.device)
        losses = [
            denoising_loss(learned.model, z.expand_as(noise), noise, t, told).mean() for z in self._held_out
        ]
        return float(torch.stack(losses).mean())

    def distance(self, learned: Learned, seed: int) -> float:
        """How far samples of what was learned are from the clean pictures."""
        made = self._threat.imagined(learned, self._held_out, seed=seed)
        z = self._threat.latents(self._model, made)
        return kernel_distance(summaries(self._model, z, time=DEPTH), self._clean)


def mixture(clean: Latents, protected: Latents, share: int) -> Latents:
    """Return as many of `protected` as `share` per cent are, and the others of `clean`.

    Which ones is drawn once, and a larger share has all of a smaller one.
    """
    order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(0))
    chosen = order[: round(share / 100 * len(clean))]
    mixed = clean.clone()
    mixed[chosen] = protected[chosen]
    return mixed


def measure(
    gallery: Gallery,
    model: DiffusionModel,
    threat: Learning,
    methods: Sequence[str],
    shares: Sequence[int],
    seeds: Sequence[int],
    *,
    held_out: int,
    settings: Mapping[str, str],
    done: Sequence[Row] = (),
) -> Iterator[Row]:
    """Protect, mix, train and judge; yields rows as they are measured.

    Without protection all methods are one, which is called the control's. `settings` are digests by method of
    what rows depend on, and `done` are rows that are there already.
    """
    names = list(gallery.originals)
    clean = threat.latents(model, torch.cat(list(gallery.originals.values())).to(model.device))
    exhibition = Exhibition(model, clean[-held_out:], clean, threat)
    there = {(row.method, row.share, row.seed) for row in done if row.settings == settings.get(row.method)}
    for method in (CONTROL, *methods):
        own = (0, max(shares)) if method == CONTROL else [share for share in shares if share]
        if all((method, share, seed) in there for share in own for seed in seeds):
            continue
        versions = torch.cat([gallery.version(name, method) for name in names[:-held_out]])
        protected = threat.latents(model, versions.to(model.device))
        for share, seed in ((share, seed) for share in own for seed in seeds):
            if (method, share, seed) in there:
                continue
            learned = threat.learn(model, mixture(clean[:-held_out], protected, share), seed=seed)
            figures = (exhibition.loss(learned), exhibition.untrained, exhibition.distance(learned, seed))
            yield Row(method, share, seed, *figures, settings[method])


def learned_share(row: Row, unhindered: float) -> float:
    """Return how much of what clean pictures teach was learned; `unhindered` is the loss after those."""
    return (row.untrained - row.loss) / (row.untrained - unhindered)


def table(rows: Sequence[Row]) -> str:
    """Return Markdown: for each method and share the means over seeds, with their standard deviations."""
    clean = [row for row in rows if row.share == 0]
    unhindered = {row.seed: row.loss for row in clean}
    heads = ("method", "protected", "learned", "loss", "distance", "seeds")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, share in dict.fromkeys((row.method, row.share) for row in rows):
        own = [row for row in rows if (row.method, row.share) == (method, share)]
        figures = (
            [learned_share(row, unhindered[row.seed]) for row in own],
            [row.loss for row in own],
            [row.distance for row in own],
        )
        name = "nothing" if share == 0 else method
        lines.append(f"| {name} | {share} % | {' | '.join(map(_spread, figures))} | {len(own)} |")
    untrained = f"Loss of the untouched model: {rows[0].untrained:.4f}."
    return "\n".join([*lines, "", untrained, ""])


def _spread(values: Sequence[float]) -> str:
    numbers = torch.tensor(values)
    return f"{numbers.mean():.4f} ± {numbers.std():.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw what is learned over the share of protected pictures: a line for each method, a dot per seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    clean = [row for row in rows if row.share == 0]
    unhindered = {row.seed: row.loss for row in clean}
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for method in dict.fromkeys(row.method for row in rows):
        own = [*clean, *(row for row in rows if row.method == method and row.share)]
        shares = sorted({row.share for row in own})
        for place, values in zip(
            axes,
            ([learned_share(row, unhindered[row.seed]) for row in own], [row.distance for row in own]),
            strict=True,
        ):
            at = torch.tensor([row.share for row in own])
            means = [float(torch.tensor(values)[at == share].mean()) for share in shares]
            style = {"color": "black", "linestyle": "--"} if method == CONTROL else {}
            (line,) = place.plot(shares, means, marker="o", ms=3, label=method, **style)
            place.plot(at, values, ".", ms=2, color=line.get_color())
    axes[0].set_ylabel("learned, of what clean pictures teach")
    axes[1].set_ylabel("distance of samples")
    for place in axes:
        place.set_xlabel("protected pictures, %")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        _run(given)
    except (ValueError, OSError) as error:
        print(f"personalisation: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m experiments personalisation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "pictures", nargs="+", type=Path, help="of one subject or style; the last are held out"
    )
    parser.add_argument("--methods", nargs="+", default=["aspl"], metavar="NAME")
    parser.add_argument("--threat", default="low-rank", help="one that trains; see protect.threats")
    parser.add_argument("--held-out", type=int, default=2)
    parser.add_argument("--shares", nargs="+", type=int, default=list(SHARES), metavar="PERCENT")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8, help="pictures that the thief makes")
    parser.add_argument("--learning-steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--eps", type=float, default=8, help="of 255")
    parser.add_argument("--steps", type=int, default=100, help="of every method")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/personalisation"))
    return parser


def _run(given: argparse.Namespace) -> None:
    training = len(given.pictures) - given.held_out
    if given.held_out < 1 or training < 2:
        raise ValueError(
            f"{given.held_out} of {len(given.pictures)} pictures held out leave too few to learn"
        )
    if 0 not in given.shares or not all(0 <= share <= 100 for share in given.shares):
        raise ValueError(
            "--shares are per cent, from 0 to 100, and 0 is among them: what clean pictures teach"
        )
    threat = create(given.threat)
    if not isinstance(threat, Learning):
        raise ValueError(f"{given.threat} trains no model; take textual-inversion, low-rank or dreambooth")
    choice = choose(given.model)
    model = choice.load(device=given.device, precision="float32")
    own = {"learning_steps": given.learning_steps, "learning_rate": given.learning_rate}
    own = {key: value for key, value in own.items() if value is not None}
    threat = replace(threat.suited(model), samples=given.samples, **own)
    threat.check(model)
    budget = Budget(given.side, given.eps / 255, given.steps)
    gallery = Gallery(
        given.pictures,
        lambda method: model,
        budget,
        given.out / "pictures",
        identity=choice.identity,
        together=training,
    )
    for name in given.methods:
        gallery.method(name).check(model)
    told = f"{threat} {budget} {given.held_out} {sorted(gallery.originals)} {choice.identity}"
    settings = {
        name: hashlib.sha256((told + gallery.digest(name)).encode()).hexdigest()[:12]
        for name in (CONTROL, *given.methods)
    }
    seeds, path = range(FIRST_SEED, FIRST_SEED + given.seeds), given.out / "rows.jsonl"
    given.out.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path, Row)
    with path.open("a") as file:
        for row in measure(
            gallery,
            model,
            threat,
            given.methods,
            given.shares,
            seeds,
            held_out=given.held_out,
            settings=settings,
            done=rows,
        ):
            rows.append(row)
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            print(f"{row.method} {row.share} % seed {row.seed}: loss {row.loss:.4f}", file=sys.stderr)
    asked = [
        row
        for row in rows
        if row.settings == settings.get(row.method) and row.share in given.shares and row.seed in seeds
    ]
    (given.out / "table.md").write_text(table(asked))
    plot(asked, given.out / "plot.png")
    print(table(asked))
