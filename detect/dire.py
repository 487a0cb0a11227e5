"""Reconstruction by a diffusion model, as a trace of generated pictures: DIRE, and its first step alone.

A diffusion model walks a picture back to noise and forward again; what it made itself it finds again more
closely than what a camera took (DIRE; Wang et al., 2023, ICCV, arXiv 2303.09295). The noise that it sees at
the first step of that walk needs one call of the network in the place of forty (DistilDIRE; Lim et al., 2024,
arXiv 2406.00856).

Everything is computed in float32 without gradients: the first step's noise is a residual times a hundred, and
half precision is lost in it. Stored maps belong into tensors or lossless files, never into the format of the
picture that they come from.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from diffusion.codec import LatentModel
from diffusion.model import DiffusionModel, Images
from diffusion.schedule import Latents

Maps = Float[Tensor, "batch 3 height width"]
Noise = Float[Tensor, "batch planes height width"]
Feature = Callable[[DiffusionModel, Images], Tensor]
Level = tuple[float, float]

STEPS = 20
"""Of the paper's walk, in each direction."""


def dire(model: DiffusionModel, images: Images, *, steps: int = STEPS, batch_size: int = 32) -> Maps:
    """Return the absolute error of images after inversion and reconstruction: [batch, 3, h, w] in [0, 1].

    The network is called 2 `steps` times for each batch; `batch_size` changes no result.

    Raises ValueError for a model in half precision, or images that the model cannot take.
    """
    return _in_batches(lambda some: (some - reconstruct(model, some, steps=steps)).abs(), images, batch_size)


def first_step_noise(
    model: DiffusionModel, images: Images, *, steps: int = STEPS, batch_size: int = 32
) -> Latents:
    """Return the noise that the model sees in clean images at the first step of their inversion.

    It has the shape of `z`: that of the images for pixel models, of latents for latent ones. `batch_size`
    changes no result.

    Raises ValueError for a model in half precision, or images that the model cannot take.
    """
    check_precision(model)

    def noise(some: Images) -> Latents:
        return seen(model, model.encode(some), timesteps(model, steps)[0])[1]

    return _in_batches(noise, images, batch_size)


def noise_maps(model: DiffusionModel, images: Images, *, steps: int = STEPS, batch_size: int = 32) -> Noise:
    """Return `first_step_noise` at the size of the images: [batch, planes, h, w].

    Latents are repeated for each pixel that they stand for.
    """
    noise = first_step_noise(model, images, steps=steps, batch_size=batch_size)
    if not isinstance(model, LatentModel):
        return 2 * model.decode(noise, clamp=False) - 1  # puts patches back where they were cut from
    return interpolate(noise, size=images.shape[-2:], mode="nearest")


@torch.no_grad()
def reconstruct(model: DiffusionModel, images: Images, *, steps: int = STEPS) -> Images:
    """Return images as the model finds them again, walked to noise and back by DDIM.

    Raises ValueError for a model in half precision, or images that the model cannot take.
    """
    check_precision(model)
    with torch.autocast(images.device.type, enabled=False):
        z = invert(model, model.encode(images.float()), timesteps(model, steps))
        return model.decode(sample(model, z, timesteps(model, steps)), clamp=False)


def timesteps(model: DiffusionModel, steps: int = STEPS) -> list[int]:
    """Return the paper's timesteps, from clean to noisy: multiples of T / steps from 0 on."""
    return model.schedule.timesteps(steps, spacing="leading", offset=0)[::-1]


def invert(model: DiffusionModel, z: Latents, upwards: Sequence[int]) -> Latents:
    """Walk from clean `z` to pure noise; timesteps go from clean to noisy.

    `z` is taken for what it would be at the first timestep, and from the last one the walk leaps to where no
    signal is left, so that what is returned is the noise seen there. `diffusion.samplers.ddim_invert`, which
    edits use, starts at the clean end and stops at the last timestep instead.
    """
    levels = [*(model.schedule.level(t) for t in upwards[1:]), (0.0, 1.0)]
    return _walk(model, z, zip(upwards, levels, strict=True))


def sample(model: DiffusionModel, z: Latents, upwards: Sequence[int]) -> Latents:
    """Walk from noise at the last of `upwards` back to a clean `z`, by DDIM without fresh noise."""
    stops = [*reversed(upwards)]
    levels = [*(model.schedule.level(there) for _, there in pairwise(stops)), (1.0, 0.0)]
    return _walk(model, z, zip(stops, levels, strict=True))


def seen(model: DiffusionModel, z_t: Latents, t: int) -> tuple[Latents, Latents]:
    """Return the clean `z` and the noise that the model sees in `z_t`.

    Where the model's schedule clamps clean pictures, the noise is what is left after that.
    """
    alpha, sigma = model.schedule.level(t)
    clean = model.predict_clean(z_t, torch.full((len(z_t),), t, device=z_t.device))
    if model.schedule.clip is not None:
        clean = clean.clamp(-model.schedule.clip, model.schedule.clip)
    return clean, (z_t - alpha * clean) / sigma


def _walk(model: DiffusionModel, z: Latents, steps: Iterable[tuple[int, Level]]) -> Latents:
    """See what is at each timestep and put it together again at the level that stands beside it."""
    for t, (alpha, sigma) in steps:
        clean, noise = seen(model, z, t)
        z = alpha * clean + sigma * noise
    return z


def check_precision(model: DiffusionModel) -> None:
    """Raise ValueError for a model in half precision."""
    if model.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{model.name} is in {str(model.dtype).removeprefix('torch.')}, in which the first step's noise "
            "is lost: load it with dtype=torch.float32"
        )


@torch.no_grad()
def _in_batches(feature: Callable[[Images], Tensor], images: Images, batch_size: int) -> Tensor:
    if batch_size < 1:
        raise ValueError(f"a batch holds one picture or more; got {batch_size}")
    with torch.autocast(images.device.type, enabled=False):
        return torch.cat([feature(some.float()) for some in images.split(batch_size)])
