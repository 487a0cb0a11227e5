"""What a thief's edit loses to each protective method.

`python -m experiments.protection PICTURE... --out runs/protection` writes `edits.csv` and `table.md`. Every
picture is protected by every method at one budget, saved to bytes, and edited (SDEdit) beside its original
with the same seeds, noise and prompt. Reported is how far the two edits are apart, next to a control:
random-sign noise of the same budget. One row per picture, method, strength and seed; the table has bootstrap
intervals over the pictures.
"""

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffusion.choice import network_precision
from diffusion.load import load
from diffusion.model import DiffusionModel
from diffusion.samplers import edit
from imaging.io import read
from imaging.metrics import psnr, ssim
from imaging.quantize import quantize
from protect.methods import METHODS, create

CONTROL = "control (random ± eps)"


@dataclass(frozen=True)
class Row:
    """One pair of edits; `change` is 1-SSIM between them and `edit_psnr` their PSNR in dB."""

    picture: str
    method: str
    strength: float
    seed: int
    change: float
    edit_psnr: float
    input_psnr: float
    input_ssim: float
    seconds: float


@dataclass(frozen=True)
class Thief:
    """How the edits are made. The prompt differs from every method's, as a thief's would."""

    prompt: str = "a painting of a castle, orange and blue, bright"
    guidance: float = 1.0
    steps: int = 20
    strengths: tuple[float, ...] = (0.2, 0.3, 0.5)
    seeds: tuple[int, ...] = (101, 102, 103, 104)

    def edits(self, model: DiffusionModel, image: Tensor, strength: float) -> Tensor:
        """The edits of one image, one per seed, as a batch."""
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        z = model.encode(image)
        noise = torch.cat([torch.randn(z.shape, generator=generator) for generator in generators]).to(z)
        return edit(
            model,
            image.expand(len(self.seeds), -1, -1, -1),
            model.condition([self.prompt]),
            strength=strength,
            steps=self.steps,
            noise=noise,
            unconditional=model.condition([""]),
            guidance=self.guidance,
        )


def square(path: Path, side: int) -> Tensor:
    """The centre of a picture as a byte-exact image [1, 3, side, side] in [0,1]."""
    image = read(path).pixels[:1]
    scale = side / min(image.shape[-2:])
    size = [max(side, round(extent * scale)) for extent in image.shape[-2:]]
    image = interpolate(image, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = ((extent - side) // 2 for extent in size)
    return (image[..., top : top + side, left : left + side] * 255).round() / 255


def protect(name: str, image: Tensor, model: DiffusionModel, *, eps: float, steps: int) -> Tensor:
    """The protected image as it would be saved, or the control."""
    generator = torch.Generator().manual_seed(0)
    if name == CONTROL:
        signs = torch.rand(image.shape, generator=generator) < 0.5
        return quantize((image + torch.where(signs, eps, -eps)).clamp(0, 1), image, eps)
    method = create(name, eps=eps, steps=steps)
    found = method.protect(
        image, model, generator=generator, precision=network_precision("auto", image.device)
    )
    return quantize(found, image, eps)


@torch.no_grad()
def compare(
    model: DiffusionModel, thief: Thief, originals: dict[float, Tensor], image: Tensor, protected: Tensor
) -> Iterator[tuple[float, int, float, float]]:
    """Strength, seed, 1-SSIM and PSNR of each pair of edits."""
    for strength, before in originals.items():
        after = thief.edits(model, protected, strength)
        changes, distances = 1 - ssim(before, after), psnr(before, after)
        for seed, change, distance in zip(thief.seeds, changes.tolist(), distances.tolist(), strict=True):
            yield strength, seed, change, distance


def measure(
    paths: Sequence[Path],
    model: DiffusionModel,
    methods: Sequence[str],
    thief: Thief,
    *,
    side: int,
    eps: float,
    steps: int,
) -> Iterator[Row]:
    """Protect, edit and compare; yields rows as they are measured."""
    for path in paths:
        image = square(path, side)
        with torch.no_grad():
            originals = {strength: thief.edits(model, image, strength) for strength in thief.strengths}
        for name in [CONTROL, *methods]:
            start = time.perf_counter()
            protected = protect(name, image, model, eps=eps, steps=steps)
            seconds = time.perf_counter() - start
            visible = psnr(image, protected).item(), ssim(image, protected).item()
            for strength, seed, change, distance in compare(model, thief, originals, image, protected):
                yield Row(path.stem, name, strength, seed, change, distance, *visible, seconds)


HEADER = ("method", "1-SSIM of edits", "95 % interval", "x control", "edit PSNR", "input PSNR", "seconds")


def table(rows: Sequence[Row]) -> str:
    """Markdown: per method the mean change, its 95 % interval over pictures, the ratio to the control."""
    control = _per_picture(rows, CONTROL).mean()
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    for method in dict.fromkeys(row.method for row in rows):
        values, mine = _per_picture(rows, method), [row for row in rows if row.method == method]
        low, high = _bootstrap(values)
        shown = ("edit_psnr", "input_psnr", "seconds")
        shown = ("edit_psnr", "input_psnr", "seconds")
        edits, inputs, spent = (sum(getattr(row, name) for row in mine) / len(mine) for name in shown)
        lines.append(
            f"| {method} | {values.mean():.3f} | {low:.3f} to {high:.3f} | {values.mean() / control:.2f} "
            f"| {edits:.1f} dB | {inputs:.1f} dB | {spent:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _per_picture(rows: Sequence[Row], method: str) -> Tensor:
    changes: dict[str, list[float]] = {}
    for row in rows:
        if row.method == method:
            changes.setdefault(row.picture, []).append(row.change)
    return torch.tensor([sum(group) / len(group) for group in changes.values()])


def _bootstrap(values: Tensor, draws: int = 2000) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (draws, len(values)), generator=generator)].mean(1)
    return means.quantile(0.025).item(), means.quantile(0.975).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/protection"))
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--eps", type=float, default=8)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with (given.out / "edits.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__))
        writer.writeheader()
        settings = {"side": given.side, "eps": given.eps / 255, "steps": given.steps}
        for row in measure(given.pictures, load(given.model), given.methods, Thief(), **settings):
            rows.append(row)
            writer.writerow(asdict(row))
            file.flush()
    (given.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
