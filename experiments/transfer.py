"""What a protection does to an encoder that it was not made against.

    python -m experiments.transfer PICTURE... --models A B C --variants photoguard "photoguard --shape luma" \
        --out runs/transfer

writes `shifts.csv` and `table.md`; a variant is written as on the command line of `protect`. One model is
left out at a time: every picture is protected against the others together, rounded to bytes, and shown to the
one left out. Measured is the relative latent shift

    ||E(h(x')) - E(h(x))|| / ||E(h(x))||

over all entries of one picture's latent, E being `model.encode` in float32 (the mean, shifted and scaled as
the denoiser knows it) and h what happens to both pictures on the way: nothing, JPEG 75, half the size and
back. The table divides its mean over the pictures by that of random-sign noise of the same budget. Beside
each stands the ceiling: the same method against the model itself.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.choice import network_precision
from diffusion.load import load
from diffusion.model import DiffusionModel, Images
from experiments.protection import random_signs, recorded, square, variant
from experiments.survival import HANDLING
from imaging.metrics import psnr, ssim
from imaging.quantize import quantize
from protect.ensemble import Models, members
from protect.method import ProtectionMethod

HANDLED = ("file", "jpeg75", "half")
OTHERS, ITSELF = "the others", "itself"


@dataclass(frozen=True)
class Row:
    """One picture in the eyes of one model, after one kind of handling."""

    picture: str
    method: str
    model: str
    made_against: str
    """`OTHERS` or `ITSELF`."""
    handling: str
    shift: float
    noise: float
    """The shift by random-sign noise of the same budget."""
    psnr: float
    ssim: float
    seconds: float


@torch.no_grad()
def shift(model: DiffusionModel, before: Images, after: Images) -> Float[Tensor, " batch"]:
    """Return the relative latent shift of each picture: how far its latent moved, over its own length."""
    z = model.encode(before)
    return (model.encode(after) - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)


def measure(
    images: Mapping[str, Images],
    models: Mapping[str, DiffusionModel],
    methods: Mapping[str, ProtectionMethod],
    *,
    ceiling: bool = True,
) -> Iterator[Row]:
    """Leave each model out in turn and yield rows as they are measured.

    With `ceiling` also those of each method against the model itself.
    """
    for words, method in methods.items():
        for name, model in models.items():
            made: dict[str, Models] = {OTHERS: [other for other in models.values() if other is not model]}
            if ceiling:
                made[ITSELF] = model
            for made_against, surrogates in made.items():
                for picture, image in images.items():
                    for seen in _seen(image, model, method, surrogates):
                        yield Row(picture, words, name, made_against, *seen)


def _seen(
    image: Images, model: DiffusionModel, method: ProtectionMethod, surrogates: Models
) -> Iterator[tuple[str, float, float, float, float, float]]:
    """The fields of a row from `handling` on."""
    started = time.perf_counter()
    found = method.protect(
        image,
        surrogates,
        generator=torch.Generator().manual_seed(0),
        precision=network_precision("auto", members(surrogates)[0].device),
    )
    seconds = time.perf_counter() - started
    found = quantize(found, image, method.eps)
    control = random_signs(image, method.eps)
    for handling in HANDLED:
        before, *after = (HANDLING[handling](each) for each in (image, found, control))
        moved, noise = (shift(model, before, each).item() for each in after)
        yield handling, moved, noise, psnr(image, found).item(), ssim(image, found).item(), seconds


def table(rows: Sequence[Row]) -> str:
    """Markdown: ratios to the noise, a line per method and what it was made against, a column per model."""
    models = list(dict.fromkeys(row.model for row in rows))
    titles = ["method", "made against", *(f"on {model}" for model in models), "PSNR", "SSIM", "seconds"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for method, made_against in dict.fromkeys((row.method, row.made_against) for row in rows):
        mine = [row for row in rows if (row.method, row.made_against) == (method, made_against)]
        ratios = (_ratios([row for row in mine if row.model == model]) for model in models)
        seen = f"{_mean(mine, 'psnr'):.1f} dB | {_mean(mine, 'ssim'):.3f} | {_mean(mine, 'seconds'):.0f}"
        lines.append(f"| {method} | {made_against} | {' | '.join(ratios)} | {seen} |")
    noises = (_noises([row for row in rows if row.model == model]) for model in models)
    lines.append(f"| shift by the noise | | {' | '.join(noises)} | | | |")
    return "\n".join(lines) + f"\n\nThree figures to a cell: {', '.join(HANDLED)}.\n"


def _ratios(rows: Sequence[Row]) -> str:
    return " ".join(f"{_mean(part, 'shift') / _mean(part, 'noise'):.2f}" for part in _by_handling(rows))


def _noises(rows: Sequence[Row]) -> str:
    return " ".join(f"{_mean(part, 'noise'):.3f}" for part in _by_handling(rows))


def _by_handling(rows: Sequence[Row]) -> list[list[Row]]:
    return [[row for row in rows if row.handling == handling] for handling in HANDLED]


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(getattr(row, name) for row in rows) / len(rows)


def middle(images: Images, side: int | None) -> Images:
    """The middle of images, `side` pixels high and wide; all of them for None."""
    if side is None:
        return images
    top, left = ((extent - side) // 2 for extent in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--models", nargs="+", default=["taesd", "taesdxl", "taef1", "builtin"])
    parser.add_argument("--variants", nargs="+", default=["photoguard", "mist-textural"])
    parser.add_argument("--side", type=int, default=256, help="the pictures' shorter side is scaled to this")
    parser.add_argument("--crop", type=int, help="and the middle of this size is taken")
    parser.add_argument("--eps", type=float, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--no-ceiling", dest="ceiling", action="store_false")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    methods = {words: variant(words, eps=given.eps / 255, steps=given.steps) for words in given.variants}
    images = {path.stem: middle(square(path, given.side), given.crop) for path in given.pictures}
    models = {Path(name).name: load(name, denoiser=False) for name in given.models}
    measured = measure(images, models, methods, ceiling=given.ceiling)
    rows = recorded(measured, Row, given.out / "shifts.csv")
    (given.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
