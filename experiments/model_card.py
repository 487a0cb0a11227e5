"""Measure the built-in model on held-out pictures and write its card.

`python -m experiments.model_card DATA`. Nothing here was seen in training: every fifteenth photograph, every
second painting, and the Kodak photographs.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffusion.latent import LatentDiffusion
from diffusion.load import BUILTIN, load
from diffusion.losses import denoising_loss
from diffusion.samplers import edit, inpaint
from experiments.masks import random_masks
from experiments.pictures import Source, centre, load_examples
from imaging.io import write
from imaging.metrics import psnr
from imaging.picture import Picture

SIDE = 256
PHOTOS = [Source("imagenet_sample/*.jpg")]
PAINTINGS = [
    Source(f"images/{who}*.jpg", "painting", 2) for who in ("canaletto", "monet", "signac", "vangogh")
]
KODAK = [Source("images/kodak*.webp", hold_out_every=1)]


@torch.no_grad()
def reconstruction(model: LatentDiffusion, images: Sequence[Tensor]) -> Tensor:
    """PSNR of encoding and decoding, in dB, one per image."""
    return torch.cat([psnr(image, model.decode(model.encode(image))) for image in images])


@torch.no_grad()
def loss_by_decile(model: LatentDiffusion, z: Tensor, captions: Sequence[str]) -> list[tuple[float, float]]:
    """(the model's loss, the best linear guess's) in each tenth of the schedule, on velocities.

    The linear guess is a multiple of the noised latent, its factor fitted on these very pictures.
    """
    condition, generator = model.condition(captions), torch.Generator().manual_seed(0)
    rows = []
    for decile in range(10):
        losses, guesses = [], []
        for time in range(100 * decile + 10, 100 * decile + 100, 30):
            t, noise = torch.full((len(z),), time), torch.randn(z.shape, generator=generator)
            losses.append(denoising_loss(model, z, noise, t, condition).mean())
            z_t, target = model.schedule.add_noise(z, noise, t), model.target(z, noise, t)
            factor = (z_t * target).sum() / z_t.square().sum()
            guesses.append((target - factor * z_t).square().mean())
        rows.append((float(torch.stack(losses).mean()), float(torch.stack(guesses).mean())))
    return rows


@torch.no_grad()
def caption_effect(model: LatentDiffusion, z: Tensor, captions: Sequence[str]) -> tuple[float, float, float]:
    """Mean loss with the right caption, with another one, and the difference in standard errors."""
    generator, right, wrong = torch.Generator().manual_seed(1), [], []
    shifted = [*captions[7:], *captions[:7]]
    for time in range(50, 1000, 100):
        t, noise = torch.full((len(z),), time), torch.randn(z.shape, generator=generator)
        right.append(denoising_loss(model, z, noise, t, model.condition(captions)))
        wrong.append(denoising_loss(model, z, noise, t, model.condition(shifted)))
    first, second = torch.stack(right).mean(0), torch.stack(wrong).mean(0)
    difference = second - first
    return (
        first.mean().item(),
        second.mean().item(),
        (difference.mean() / difference.std() * len(z) ** 0.5).item(),
    )


@torch.no_grad()
def context_effect(model: LatentDiffusion, z: Tensor, images: Tensor, masks: Tensor) -> tuple[float, float]:
    """Mean loss of an inpainting model told the right surroundings, and told another picture's."""
    right = model.inpainting(model.condition(["a photo"]), images, masks)
    wrong = model.inpainting(model.condition(["a photo"]), images.roll(1, 0), masks)
    generator, losses = torch.Generator().manual_seed(2), []
    for time in range(50, 1000, 100):
        t, noise = torch.full((len(z),), time), torch.randn(z.shape, generator=generator)
        losses.append([denoising_loss(model, z, noise, t, c).mean() for c in (right, wrong)])
    first, second = torch.tensor(losses).mean(0).tolist()
    return first, second


@torch.no_grad()
def samples(model: LatentDiffusion, images: Tensor, masks: Tensor, repainted: Tensor) -> Tensor:
    """A sheet [1, 3, rows, columns]: pictures, their round trip, an edit, the hole, the repainted hole."""
    generator = torch.Generator().manual_seed(3)
    words = model.condition(["a painting, orange and blue, bright, contrasty"] * len(images))
    empty = model.condition([""] * len(images))
    edited = edit(
        model, images, words, strength=0.5, steps=30, generator=generator, unconditional=empty, guidance=3.0
    )
    hole = torch.where(masks > 0.5, torch.full_like(images, 0.5), images)
    rows = [images, model.decode(model.encode(images)), edited, hole, repainted]
    sheet = torch.cat([torch.cat(list(row), -1) for row in rows], -2)[None]
    return interpolate(sheet, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)


def checksums(folder: Path) -> list[str]:
    """One Markdown row per weight file: path, KiB, SHA-256."""
    rows = []
    for path in sorted(folder.rglob("*.safetensors")):
        if folder == BUILTIN and BUILTIN / "cifar10" in path.parents:
            continue  # it has a card of its own
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append(f"| `{path.relative_to(folder)}` | {path.stat().st_size // 1024} | `{digest}` |")
    return rows


def main(data: str) -> None:
    root, out = Path(data), BUILTIN
    _, photos = load_examples(root, PHOTOS, short_side=SIDE)
    _, paintings = load_examples(root, PAINTINGS, short_side=SIDE)
    _, kodak = load_examples(root, KODAK, short_side=SIDE)
    model = load("builtin")
    assert isinstance(model, LatentDiffusion)
    lines = ["## Figures", "", "Round trip through the autoencoder at 256 px, PSNR in dB:", ""]
    lines += ["| pictures | number | mean | worst |", "|---|---|---|---|"]
    for name, examples in (
        ("held-out photographs", photos),
        ("Kodak", kodak),
        ("held-out paintings", paintings),
    ):
        values = reconstruction(model, [centre(example.pixels, SIDE)[None] for example in examples])
        lines.append(f"| {name} | {len(values)} | {values.mean():.2f} | {values.min():.2f} |")

    images, captions = (
        torch.stack([centre(example.pixels, SIDE) for example in photos]),
        [e.caption for e in photos],
    )
    with torch.no_grad():
        z = torch.cat([model.encode(image[None]) for image in images])
    lines += [
        "",
        "Loss (squared velocity error) on the held-out photographs, by tenth of the schedule, beside",
    ]
    lines += ["the best multiple of the noised latent, whose factor is fitted on these pictures:", ""]
    lines += ["| times | model | linear guess | share |", "|---|---|---|---|"]
    for decile, (loss, guess) in enumerate(loss_by_decile(model, z, captions)):
        span = f"{100 * decile} to {100 * decile + 99}"
        lines.append(f"| {span} | {loss:.3f} | {guess:.3f} | {loss / guess:.2f} |")
    right, wrong, errors = caption_effect(model, z, captions)
    lines += [
        "",
        f"Right caption {right:.4f}, another picture's {wrong:.4f}: {errors:.1f} standard errors apart.",
    ]

    painter = load("builtin-inpainting")
    assert isinstance(painter, LatentDiffusion)
    masks = random_masks(24, SIDE, generator=torch.Generator().manual_seed(4))
    keep = masks.mean((1, 2, 3)) < 0.9
    right, wrong = context_effect(painter, z[:24][keep], images[:24][keep], masks[keep])
    lines += ["", f"Inpainting denoiser: right surroundings {right:.4f}, another picture's {wrong:.4f}."]
    shown, holes = images[:24][keep][:6], masks[keep][:6]
    with torch.no_grad():
        words, seed = painter.condition(["a photo"] * len(shown)), torch.Generator().manual_seed(2)
        repainted = inpaint(painter, shown, holes, words, steps=20, generator=seed)
    sheet = samples(model, shown, holes, repainted)
    write(Picture.from_pixels(sheet), out / "samples.png", overwrite=True)
    lines += ["", "## Files", "", "| file | KiB | SHA-256 |", "|---|---|---|", *checksums(out)]
    card = out / "README.md"
    head = card.read_text().split("## Figures")[0] if card.exists() else "# The built-in model\n\n"
    card.write_text(head + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
