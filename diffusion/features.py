"""Inside a network: what its layers say while it runs, and how far two pictures are apart there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.model import Condition, DiffusionModel, Images
from diffusion.schedule import Latents, Timesteps

Feature = Float[Tensor, "batch channels h w"]
Losses = Float[Tensor, " batch"]
Vectors = Float[Tensor, "n dim"]


class _EnoughError(Exception):
    """Every wanted layer has spoken."""


@contextmanager
def replaced_output(layer: nn.Module, value: Tensor) -> Iterator[None]:
    """Let `layer` return `value`, whatever it computes."""
    handle = layer.register_forward_hook(lambda *_: value)
    try:
        yield
    finally:
        handle.remove()


def bottleneck(model: DiffusionModel) -> list[nn.Module]:
    """Return the residual blocks at a U-Net's lowest resolution: those of the middle, and the first after.

    Raises ValueError for a denoiser of another shape.
    """
    network = model.denoiser
    try:
        return [*network.mid_block.resnets, network.up_blocks[0].resnets[0]]  # pyrefly: ignore
    except (AttributeError, TypeError):
        raise ValueError(f"{model.name} has no U-Net, whose middle is looked into") from None


def features(
    model: DiffusionModel,
    z_t: Latents,
    t: Timesteps,
    condition: Condition | None = None,
    *,
    layers: Sequence[nn.Module],
) -> list[Feature]:
    """Return what some layers of the denoiser say, in the order of `layers`; differentiable.

    The network runs no further than the last of them. Raises ValueError if one does not run.
    """
    return _said(lambda: model.predict(z_t, t, condition), layers)


def encoder_scales(model: DiffusionModel) -> list[nn.Module]:
    """Return the layers that speak last at each scale of the encoder, from the picture's own downwards.

    A model of plain pixels has none.
    """
    encoder: Any = getattr(getattr(model, "vae", None), "encoder", None)
    if encoder is None:
        return []
    if not hasattr(encoder, "layers"):
        return [block.resnets[-1] for block in encoder.down_blocks]
    # A TAESD is a sequence of blocks, with a convolution between two scales and one behind the last.
    return [layer for layer, after in pairwise(encoder.layers) if isinstance(after, nn.Conv2d)]


def seen_at(model: DiffusionModel, images: Images, scale: int) -> Feature:
    """Return what the encoder says at the end of a scale, 0 being the picture's own; differentiable.

    It runs no further than that. Beyond its last scale, and for a model of plain pixels, it is `z`.
    """
    layers = encoder_scales(model)[scale : scale + 1]
    return _said(lambda: model.encode(images), layers)[0] if layers else model.encode(images)


def _said(run: Callable[[], object], layers: Sequence[nn.Module]) -> list[Feature]:
    """Return what `layers` say while `run` runs, which is ended as soon as all of them have."""
    said: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, given: object, output: Tensor) -> None:
        said[layer] = output
        if len(said) == len(set(layers)):
            raise _EnoughError

    handles = [layer.register_forward_hook(keep) for layer in set(layers)]
    try:
        run()
        raise ValueError(f"{len(said)} of {len(set(layers))} layers ran: the others are not the network's")
    except _EnoughError:
        return [said[layer] for layer in layers]
    finally:
        for handle in handles:
            handle.remove()


def wasserstein(one: Feature, other: Feature, *, floor: float = 0.1) -> Losses:
    """Return the squared 2-Wasserstein distance of two feature maps, each taken for a Gaussian over places.

    With means m and scatters S of the channels over an image's places,
    `mean((m_1 - m_2)^2) + tr S_1 + tr S_2 - 2 sum_i sqrt(max(l_i, floor))`, l the eigenvalues of
    `S_1^(1/2) S_2 S_1^(1/2)`, as AtkPDM has it (Shih et al., 2024, arXiv 2408.11810). With centred features
    A [channels, places], S = A A^T, their roots are the singular values of `A_1^T A_2`: no matrix of channels
    by channels is decomposed, and the gradient stays finite where eigenvalues coincide.
    """
    (mean, spread), (other_mean, other_spread) = (_centred(feature.flatten(2)) for feature in (one, other))
    channels, places = spread.shape[1:]
    scatter = spread.square().flatten(1).sum(1) + other_spread.square().flatten(1).sum(1)
    roots = torch.linalg.svdvals(_small(spread, other_spread)).clamp_min(floor**0.5)
    # eigenvalues that are zero for want of places are floored, too
    rest = max(channels - places, 0) * floor**0.5
    return (mean - other_mean).square().mean(1) + scatter - 2 * (roots.sum(1) + rest)


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.float() if rows.dtype.itemsize < 4 else rows
    mean = rows.mean(2)
    return mean, rows - mean[:, :, None]


def _small(one: Tensor, other: Tensor) -> Tensor:
    """Return a matrix with the singular values of `one^T other`, of the smaller of the two sizes."""
    channels, places = one.shape[1:]
    if places <= channels:
        return one.mT @ other
    left, right = torch.linalg.qr(one.mT).R, torch.linalg.qr(other.mT).R
    return left @ right.mT


@torch.no_grad()
def summaries(model: DiffusionModel, z: Latents, *, time: int, batch_size: int = 8) -> Vectors:
    """Return what the middle of a U-Net says of latents, each map averaged over its places.

    They are seen at `time`, of 1000, all with the same noise.

    Raises ValueError for a denoiser of another shape.
    """
    noise = torch.randn(z[:1].shape, generator=torch.Generator().manual_seed(1)).to(z)
    layers, found = bottleneck(model)[:-1], []
    for part in z.split(batch_size):
        t = torch.full((len(part),), time * len(model.schedule) // 1000, device=z.device)
        z_t = model.schedule.add_noise(part, noise.expand_as(part), t)
        said = features(model, z_t, t, layers=layers)
        found.append(torch.cat([each.mean((2, 3)) for each in said], dim=1))
    return torch.cat(found)


def kernel_distance(samples: Vectors, reference: Vectors) -> float:
    """Return the unbiased squared maximum mean discrepancy, with the kernel (x y / d + 1)^3 of KID (Binkowski
    et al., ICLR 2018, arXiv 1801.01401); of other features than Inception's it is no KID.

    Both are divided by the reference's root mean square first.

    Raises ValueError for fewer than two of either.
    """
    if min(len(samples), len(reference)) < 2:
        raise ValueError("a discrepancy needs two samples and two references, or more")
    scale = reference.square().mean().sqrt()
    x, y = samples / scale, reference / scale

    def kernel(a: Vectors, b: Vectors) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Vectors) -> Tensor:
        n, k = len(a), kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())
