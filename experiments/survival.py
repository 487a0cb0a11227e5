"""What handling leaves of protections that expect it, and what shapes cost: variants of methods side by side.

    python -m experiments.survival PICTURE... --variants mist "mist --survive jpeg,resize,blur" \
        "photoguard --shape luma --eps 12" --out runs/survival

A variant is written as on the command line of `protect`. Every picture is protected by each, rounded to
bytes, and edited beside its original after the same handling, with equal noise and prompt; an autoencoder
alone reconstructs instead. Reported are damage (1 - SSIM of the two edits) as the file is and its share that
each handling leaves, next to how much is seen of the protection; the control is random-sign noise of `--eps`.
`rows.csv` and `table.md` go to `--out`.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.choice import choose, network_precision
from diffusion.model import DiffusionModel
from experiments.protection import (
    CONTROL,
    PROMPT,
    bootstrap,
    per_picture,
    random_signs,
    recorded,
    square,
    variant,
)
from imaging import transforms
from imaging.metrics import psnr, ssim
from imaging.perceptual import Lpips
from imaging.quantize import quantize
from protect.method import ProtectionMethod
from protect.threats.img2img import Img2Img
from protect.threats.threat import Edit
from protect.verify.thief import CounterMeasure, Thief, change, outcomes

FILE = "file"
HANDLING: dict[str, Callable[[Tensor], Tensor]] = {
    FILE: lambda images: images,
    "jpeg95": lambda images: transforms.jpeg(images, 95),
    "jpeg85": lambda images: transforms.jpeg(images, 85),
    "jpeg75": lambda images: transforms.jpeg(images, 75),
    "jpeg65": lambda images: transforms.jpeg(images, 65),
    "half": lambda images: transforms.resize(images, 0.5),
    "blur": lambda images: transforms.gaussian_blur(images, 1.0),
    "jpeg75+half": lambda images: transforms.resize(transforms.jpeg(images, 75), 0.5),
}
SEEDS = (101, 102, 103, 104)
"""Unlike 0, with which pictures are protected."""


@dataclass(frozen=True)
class Reconstruct(Edit):
    """Encode and decode: all that an autoencoder alone can do to a picture."""

    paper = ""

    def check(self, model: DiffusionModel) -> None:
        """Accept any model."""

    def edit(self, model: DiffusionModel, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return model.decode(model.encode(images))


@dataclass(frozen=True)
class Row:
    """A variant of a picture after one handling; `change` is 1 - SSIM of its edit and the original's, the
    mean over seeds, and the rest is seen in the file."""

    picture: str
    method: str
    thief: str
    handling: str
    change: float
    psnr: float
    ssim: float
    lpips: float | None
    largest: float
    """In 1/255."""
    seconds: float


def thieves(
    model: DiffusionModel,
    *,
    prompt: str,
    strengths: Sequence[float],
    seeds: Sequence[int],
    precision: torch.dtype,
) -> dict[str, Thief]:
    """Return who edits with `model`, by strength; with an autoencoder alone, who reconstructs."""
    if not model.has_denoiser:
        return {"reconstruction": Thief(Reconstruct(), model, seeds[:1], precision)}
    edit = Img2Img(prompt=prompt, steps=20, guidance=1.0)
    return {
        f"edits of strength {strength:g}": Thief(replace(edit, strength=strength), model, seeds, precision)
        for strength in strengths
    }


def measure(
    pictures: Mapping[str, Tensor],
    variants: Mapping[str, ProtectionMethod],
    who: Mapping[str, Thief],
    *,
    eps: float,
    handling: Sequence[str] = tuple(HANDLING),
    lpips: Lpips | None = None,
) -> Iterator[Row]:
    """Protect, handle, edit and compare; yields rows as they are measured."""
    counters = {name: CounterMeasure(HANDLING[name]) for name in handling}
    first = next(iter(who.values()))
    for picture, image in pictures.items():
        versions, seconds = {CONTROL: random_signs(image, eps)}, {CONTROL: 0.0}
        for words, method in variants.items():
            start = time.perf_counter()
            found = method.protect(
                image, first.model, generator=torch.Generator().manual_seed(0), precision=first.precision
            )
            versions[words], seconds[words] = (
                quantize(found, image, method.eps),
                time.perf_counter() - start,
            )
        for one in outcomes(who, counters, image, versions):
            damage = [each.damage for each in change(one.made, one.original)]
            seen = versions[one.version]
            yield Row(
                picture,
                one.version,
                one.thief,
                one.counter_measure,
                sum(damage) / len(damage),
                psnr(seen, image).item(),
                ssim(seen, image).item(),
                None if lpips is None else lpips(seen, image).item(),
                (seen - image).abs().max().item() * 255,
                seconds[one.version],
            )


def table(rows: Sequence[Row]) -> str:
    """Markdown, by thief: how much is seen of each variant, what it does, and the share that each handling
    leaves."""
    names = dict.fromkeys(row.thief for row in rows)
    return "\n".join(f"{name}:\n\n{_table([row for row in rows if row.thief == name])}" for name in names)


def _table(rows: Sequence[Row]) -> str:
    handled = [name for name in dict.fromkeys(row.handling for row in rows) if name != FILE]
    heads = ("method", "PSNR", "SSIM", "LPIPS", "1-SSIM of edits", "95 % interval", *handled)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        plain = per_picture([row for row in own if row.handling == FILE], method)
        low, high = bootstrap(plain)
        left = [
            per_picture([row for row in own if row.handling == name], method).mean() / plain.mean()
            for name in handled
        ]
        visible = [row.lpips for row in own if row.lpips is not None]
        cells = [
            method,
            f"{sum(row.psnr for row in own) / len(own):.1f} dB",
            f"{sum(row.ssim for row in own) / len(own):.3f}",
            f"{sum(visible) / len(visible):.3f}" if visible else "",
            f"{plain.mean():.4f}",
            f"{low:.4f} to {high:.4f}",
            *(f"{share:.2f}" for share in left),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--variants", nargs="+", required=True)
    parser.add_argument("--handling", nargs="+", choices=HANDLING, default=list(HANDLING))
    parser.add_argument("--out", type=Path, default=Path("runs/survival"))
    parser.add_argument("--model", default="builtin", help="a folder of TAESD's halves tries an autoencoder")
    parser.add_argument("--prompt", default=PROMPT, help="of the edits; empty for models without a text")
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.3])
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many edits of each picture")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--eps", type=float, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lpips", type=Path, help="weights of LPIPS on AlexNet")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    eps, model = given.eps / 255, choose(given.model).load()
    who = thieves(
        model,
        prompt=given.prompt,
        strengths=given.strengths,
        seeds=range(SEEDS[0], SEEDS[0] + given.seeds),
        precision=network_precision("auto", model.device),
    )
    found = measure(
        {path.stem: square(path, given.side).to(model.device) for path in given.pictures},
        {words: variant(words, eps=eps, steps=given.steps) for words in given.variants},
        who,
        eps=eps,
        handling=[FILE, *(name for name in given.handling if name != FILE)],
        lpips=None if given.lpips is None else Lpips.from_file(given.lpips).to(model.device),
    )
    rows = recorded(found, Row, given.out / "rows.csv")
    (given.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
