"""What repainting loses to each protective method, under the owner's mask and under masks he did not see.

`python -m experiments.inpainting PICTURE... --out runs/inpainting` writes `edits.csv` and `table.md`. In
every picture a figure is marked by a mask that is drawn by code. Each method protects it at one budget and
number of steps; the file's bytes and the original are then repainted around the kept part, with equal noise
and prompt, by an inpainting model. Reported is how far the two are apart where they were repainted, beside a
control: random-sign noise of the same budget in the same place. The thief keeps what the owner's mask shows
("seen") or another outline of the same figure: its box, its ellipse, its hull, a wider, a narrower and a
shifted one. One row per picture, method, mask and seed; the table has bootstrap intervals over the pictures.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from diffusion.choice import network_precision
from diffusion.load import load
from diffusion.model import DiffusionModel
from experiments.protection import CONTROL, PROMPT, bootstrap, per_picture, random_signs, recorded, square
from imaging.metrics import psnr, ssim
from imaging.quantize import quantize
from protect.methods import create
from protect.threats.inpainting import Inpainting
from protect.verify.thief import CounterMeasure, Thief, change, outcomes

METHODS = ("diffusionguard", "photoguard", "mist", "photoguard-diffusion")
SEEN = "seen"
SEEDS = (101, 102)

Mask = Float[Tensor, "1 1 side side"]
Masks = dict[str, Mask]


@dataclass(frozen=True)
class Row:
    """One pair of results; `change` is 1-SSIM between them and `edit_psnr` their PSNR in dB, both where they
    were repainted."""

    picture: str
    method: str
    mask: str
    seed: int
    change: float
    edit_psnr: float
    input_psnr: float
    input_ssim: float
    seconds: float


def outlines(side: int, seed: int) -> Masks:
    """The owner's mask of a figure, 1 inside, and six others that a thief may paint of the same."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centre = side * (0.4 + 0.2 * torch.rand(2, generator=generator))
    y, x = rows - centre[0], columns - centre[1]
    angle, radius = torch.atan2(y, x), torch.full((side, side), 0.24 * side)
    for wave in (2, 3, 5):
        size, phase = torch.rand(2, generator=generator).tolist()
        radius = radius * (1 + 0.25 * size * torch.cos(wave * angle + 2 * torch.pi * phase))
    seen = torch.hypot(y, x) < radius
    (top, left), (bottom, right) = seen.nonzero().amin(0), seen.nonzero().amax(0)
    across, along = (2 * rows - top - bottom) / (bottom - top), (2 * columns - left - right) / (right - left)
    hull = torch.ones_like(seen)
    for turn in torch.arange(64) * torch.pi / 32:
        reach = y * torch.sin(turn) + x * torch.cos(turn)
        hull &= reach <= reach[seen].max()
    shifted = torch.zeros_like(seen)
    shifted[side // 20 :, side // 30 :] = seen[: side - side // 20, : side - side // 30]
    masks = {
        SEEN: seen,
        "box": torch.maximum(across.abs(), along.abs()) <= 1,
        "ellipse": torch.hypot(across, along) <= 1,
        "hull": hull,
        "wider": _widened(seen, side // 24),
        "narrower": ~_widened(~seen, side // 24),
        "shifted": shifted,
    }
    return {name: mask[None, None].float() for name, mask in masks.items()}


def _widened(region: Tensor, reach: int) -> Tensor:
    return max_pool2d(region[None].float(), 2 * reach + 1, 1, reach)[0] > 0


def protect(
    name: str,
    image: Tensor,
    mask: Mask,
    painter: DiffusionModel,
    denoiser: DiffusionModel,
    *,
    eps: float,
    steps: int,
) -> Tensor:
    """The protected image as it would be saved, changed only where the mask is 1.

    Methods that know nothing of inpainting get the plain denoiser that shares the painter's autoencoder.
    """
    if name == CONTROL:
        return torch.where(mask > 0, random_signs(image, eps), image)
    method = create(name, eps=eps, steps=steps)
    model = painter if method.needs_inpainting else denoiser
    found = method.protect(
        image,
        model,
        mask=mask,
        generator=torch.Generator().manual_seed(0),
        precision=network_precision("auto", image.device),
    )
    return quantize(found, image, eps)


def measure(
    paths: Sequence[Path],
    painter: DiffusionModel,
    denoiser: DiffusionModel,
    methods: Sequence[str],
    *,
    side: int,
    sampler_steps: int,
    **budget,
) -> Iterator[Row]:
    """Protect, repaint and compare; yields rows as they are measured."""
    as_it_is = {"": CounterMeasure(lambda images: images)}
    for number, path in enumerate(paths):
        image, masks = square(path, side), outlines(side, number)
        threat = {"prompt": PROMPT, "steps": sampler_steps, "guidance": 1.0}
        thieves = {
            name: Thief(Inpainting(mask=1 - kept, **threat), painter, SEEDS) for name, kept in masks.items()
        }
        versions, seconds = {}, {}
        for name in [CONTROL, *methods]:
            start = time.perf_counter()
            versions[name] = protect(name, image, masks[SEEN], painter, denoiser, **budget)
            seconds[name] = time.perf_counter() - start
        for one in outcomes(thieves, as_it_is, image, versions):
            protected = versions[one.version]
            visible = psnr(image, protected).item(), ssim(image, protected).item()
            for seed, moved in zip(SEEDS, change(one.made, one.original, region=one.region), strict=True):
                yield Row(
                    path.stem,
                    one.version,
                    one.thief,
                    seed,
                    moved.damage,
                    moved.psnr,
                    *visible,
                    seconds[one.version],
                )


HEADER = (
    "method",
    "seen 1-SSIM",
    "95 % interval",
    "unseen 1-SSIM",
    "95 % interval",
    "unseen x control",
    "unseen x photoguard",
    "95 % interval",
    "PSNR seen",
    "PSNR unseen",
    "input PSNR",
    "seconds",
)


def table(rows: Sequence[Row]) -> str:
    """Markdown: per method the mean change under seen and unseen masks, with 95 % intervals over pictures."""
    seen, unseen = ([row for row in rows if (row.mask == SEEN) == known] for known in (True, False))
    control, rival = (per_picture(unseen, name) for name in (CONTROL, "photoguard"))
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    for method in dict.fromkeys(row.method for row in rows):
        cells = [method]
        for part in (seen, unseen):
            values = per_picture(part, method)
            cells += [f"{values.mean():.3g}", "{:.3g} to {:.3g}".format(*bootstrap(values))]
        values = per_picture(unseen, method)
        cells.append(f"{values.mean() / control.mean():.2f}")
        cells += [f"{values.mean() / rival.mean():.2f}", "{:.2f} to {:.2f}".format(*_ratio(values, rival))]
        cells += [f"{_mean(part, method, 'edit_psnr'):.1f} dB" for part in (seen, unseen)]
        cells += [f"{_mean(rows, method, 'input_psnr'):.1f} dB", f"{_mean(rows, method, 'seconds'):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_mask(rows: Sequence[Row]) -> str:
    """Markdown: per method the mean change under each mask."""
    masks = list(dict.fromkeys(row.mask for row in rows))
    lines = [f"| method | {' | '.join(masks)} |", "|---" * (len(masks) + 1) + "|"]
    for method in dict.fromkeys(row.method for row in rows):
        means = [_mean([row for row in rows if row.mask == mask], method, "change") for mask in masks]
        lines.append(f"| {method} | {' | '.join(f'{mean:.3g}' for mean in means)} |")
    return "\n".join(lines) + "\n"


def _ratio(values: Tensor, others: Tensor, draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the ratio of two means over the same pictures, drawn together."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (draws, len(values)), generator=generator)
    ratios = values[drawn].mean(1) / others[drawn].mean(1)
    return ratios.quantile(0.025).item(), ratios.quantile(0.975).item()


def _mean(rows: Sequence[Row], method: str, field: str) -> float:
    mine = [getattr(row, field) for row in rows if row.method == method]
    return sum(mine) / len(mine)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/inpainting"))
    parser.add_argument("--model", default="builtin-inpainting")
    parser.add_argument("--denoiser", default="builtin", help="of the same family, for methods like mist")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="photoguard among them")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--eps", type=float, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sampler-steps", type=int, default=10)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    measured = measure(
        given.pictures,
        load(given.model),
        load(given.denoiser),
        given.methods,
        side=given.side,
        sampler_steps=given.sampler_steps,
        eps=given.eps / 255,
        steps=given.steps,
    )
    rows = recorded(measured, Row, given.out / "edits.csv")
    tables = f"{table(rows)}\n{by_mask(rows)}"
    (given.out / "table.md").write_text(tables)
    print(tables)


if __name__ == "__main__":
    main()
