"""Measure the CIFAR-10 diffusion model and write its card.

`python -m experiments.cifar_card DATA WEIGHTS`: DATA holds CIFAR-10, WEIGHTS is the safetensors of a CIFAR
ResNet, which classifies what is purified and whose last features compare samples with test pictures.
"""

import sys

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diffusion.gaussian import GaussianDenoiser
from diffusion.load import BUILTIN, load
from diffusion.losses import denoising_loss
from diffusion.model import DiffusionModel
from diffusion.samplers import ddim
from experiments.cifar import cifar10
from experiments.model_card import checksums
from experiments.networks import cifar_network
from imaging.io import write
from imaging.picture import Picture
from purify import DiffPure, PurifiedClassifier
from unlearn.measures import answers

TIMES = (50, 75, 100, 125, 150)


@torch.no_grad()
def loss_by_decile(model: DiffusionModel, images: Tensor) -> list[float]:
    """Mean squared velocity error in each tenth of the schedule, on the same noise for every model."""
    z, rows = model.encode(images), []
    for decile in range(10):
        generator, losses = torch.Generator().manual_seed(decile), []
        for time in (100 * decile + 25, 100 * decile + 75):
            # drawn as pixels, so that a model that folds them sees the same noise
            noise = model.encode((torch.randn(images.shape, generator=generator) + 1) / 2)
            losses.append(denoising_loss(model, z, noise, torch.full((len(z),), time)).mean())
        rows.append(float(torch.stack(losses).mean()))
    return rows


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 256) -> float:
    """The share of images that are classified right, in per cent."""
    with torch.no_grad():
        right = [
            (model(part).argmax(1) == truth).float()
            for part, truth in zip(images.split(batch), labels.split(batch), strict=True)
        ]
    return 100 * float(torch.cat(right).mean())


@torch.no_grad()
def sample(model: DiffusionModel, labels: Tensor, *, steps: int, seed: int, batch: int = 250) -> Tensor:
    """Images of the given classes, by DDIM from pure noise."""
    generator, parts = torch.Generator().manual_seed(seed), []
    timesteps = model.schedule.timesteps(steps, spacing="trailing")
    for part in labels.split(batch):
        z = torch.randn(len(part), model.latent_channels, 16, 16, generator=generator)
        condition = model.condition([str(int(label)) for label in part])
        parts.append(model.decode(ddim(model, z, condition, timesteps=timesteps)))
    return torch.cat(parts)


@torch.no_grad()
def features(network: nn.Module, images: Tensor) -> Tensor:
    """The classifier's pooled features [n, 64], float64."""
    kept: list[Tensor] = []
    handle = network.get_submodule("network.linear").register_forward_pre_hook(
        lambda module, inputs: kept.append(inputs[0].double())
    )
    try:
        for part in images.split(250):
            network(part)
    finally:
        handle.remove()
    return torch.cat(kept)


def frechet(one: Tensor, other: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (Heusel et al., 2017, NeurIPS)."""
    means, covariances = zip(*((x.mean(0), torch.cov(x.T)) for x in (one, other)), strict=True)
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    apart = (means[0] - means[1]).square().sum()
    return float(apart + torch.trace(covariances[0]) + torch.trace(covariances[1]) - 2 * cross)


def main(data: str, weights: str) -> None:
    out = BUILTIN / "cifar10"
    model, network = load("cifar10"), cifar_network(weights)
    pictures, labels = cifar10(data, train=False)
    test = pictures[:2000].float() / 255
    quick = load("cifar10", dtype=torch.bfloat16)  # for what takes long; the losses are taken in float32
    training = cifar10(data, train=True)[0].float() / 255
    gaussian = GaussianDenoiser.fitted(training, model.schedule, prediction="v")
    ours, theirs = loss_by_decile(model, test[:512]), loss_by_decile(gaussian, test[:512])
    lines = ["## Figures", "", "Squared velocity error on the first 512 test pictures, without a class:", ""]
    lines += ["| times | model | Gaussian of the training set | share |", "|---|---|---|---|"]
    for decile, (loss, guess) in enumerate(zip(ours, theirs, strict=True)):
        span = f"{100 * decile} to {100 * decile + 99}"
        lines.append(f"| {span} | {loss:.4f} | {guess:.4f} | {loss / guess:.2f} |")

    lines += [
        "",
        "Accuracy of a ResNet-56 on the first 500 test pictures, purified by one draw in bfloat16:",
        "",
    ]
    lines += ["| t | 10 steps of DDPM | 10 steps of DDIM |", "|---|---|---|"]
    lines.append(f"| 0 | {accuracy(network, test[:500], labels[:500]):.1f} | |")
    for t in TIMES:
        figures = []
        for sampler in ("ddpm", "ddim"):
            purifier = DiffPure(quick, t=t, steps=10, sampler=sampler).seeded(0)
            defended = PurifiedClassifier(purifier, network)
            figures.append(f"{accuracy(defended, test[:500], labels[:500]):.1f}")
        lines.append(f"| {t} | {' | '.join(figures)} |")

    made = sample(quick, torch.arange(1000) % 10, steps=30, seed=0)
    ours, theirs = features(network, made), features(network, test)
    between, half = frechet(ours, theirs[:1000]), frechet(theirs[:1000], theirs[1000:])
    lines += [
        "",
        "Frechet distance in the 64 last features of that ResNet-56, 1,000 samples (30 DDIM steps, classes "
        f"in turn) against 1,000 test pictures: {between:.2f}; another 1,000 test pictures against these: "
        f"{half:.2f}. The ResNet takes {_agreement(network, made):.0f} % of the samples for their class.",
    ]
    sheet = torch.cat([torch.cat(list(made[row * 10 : row * 10 + 10]), -1) for row in range(8)], -2)[None]
    large = interpolate(sheet, scale_factor=2, mode="nearest")
    write(Picture.from_pixels(large), out / "samples.png", overwrite=True)
    lines += ["", "## Files", "", "| file | KiB | SHA-256 |", "|---|---|---|", *checksums(out)]
    card = out / "README.md"
    head = card.read_text().split("## Figures")[0] if card.exists() else "# The CIFAR-10 diffusion model\n\n"
    card.write_text(head + "\n".join(lines) + "\n")
    print("\n".join(lines))


def _agreement(network: nn.Module, made: Tensor) -> float:
    return 100 * float((answers(network, made) == torch.arange(len(made)) % 10).float().mean())


if __name__ == "__main__":
    main(*sys.argv[1:])
