"""Between pictures and latents: autoencoders, and what all models of latents share."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from diffusers.models import AutoencoderKL, AutoencoderTiny
from torch import nn

from diffusion.model import DiffusionModel, Images, Prediction
from diffusion.schedule import Latents, NoiseSchedule

Vae = AutoencoderKL | AutoencoderTiny


class Codec(nn.Module):
    """An autoencoder with its scale and shift: images in [0, 1] to latents as the denoiser knows them.

    The first is the variational autoencoder of latent diffusion (Rombach et al., 2022, arXiv 2112.10752),
    whose posterior mean is taken; the second is the distilled TAESD, a small stand-in for it.
    """

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        # SDXL's autoencoder overflows in float16; its configuration, and those of its kin, say so
        self._overflows = bool(vae.config["force_upcast"])
        if self._overflows and next(vae.parameters()).dtype == torch.float16:
            vae = vae.float()
        self.vae = vae
        self.scale: float = vae.config["scaling_factor"]
        self.shift: float = vae.config["shift_factor"] or 0.0
        self.channels: int = vae.config["latent_channels"]
        self.stride: int = 2 ** (len(vae.config["block_out_channels"]) - 1)

    def mean(self, images: Images) -> Latents:
        """Return the posterior mean as the autoencoder says it, neither shifted nor scaled;
        differentiable."""
        weight = next(self.vae.parameters())
        with self._precision(weight.device):
            code = self.vae.encode((2 * images - 1).to(weight.dtype), return_dict=False)[0]
        mean = code if isinstance(code, torch.Tensor) else code.mean
        return mean.to(images.dtype)

    def encode(self, images: Images) -> Latents:
        """Return `scale (mean - shift)`."""
        return (self.mean(images) - self.shift) * self.scale

    def decode(self, z: Latents, *, clamp: bool = True) -> Images:
        """Return the images of scaled latents."""
        weight = next(self.vae.parameters())
        with self._precision(weight.device):
            code = (z / self.scale + self.shift).to(weight.dtype)
            images = (cast(Any, self.vae).decode(code, return_dict=False)[0].to(z.dtype) + 1) / 2
        return images.clamp(0, 1) if clamp else images

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Keep a caller's float16 autocast away from an autoencoder that overflows in it."""
        kind = device.type
        halved = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        return torch.autocast(kind, enabled=False) if halved and self._overflows else nullcontext()


class LatentModel(DiffusionModel):
    """A model whose `z` are the latents of an autoencoder; abstract, the base of all in `latent` and
    `flow`.

    `patch` is the side of the squares of latents that the denoiser takes as one, `latent_side` the largest
    that it was made for.
    """

    def __init__(
        self,
        vae: Vae,
        schedule: NoiseSchedule,
        *,
        prediction: Prediction,
        name: str,
        latent_side: int,
        patch: int = 1,
    ) -> None:
        codec = Codec(vae)
        super().__init__(
            schedule,
            prediction=prediction,
            name=name,
            multiple=patch * codec.stride,
            latent_channels=codec.channels,
            comfortable=latent_side * codec.stride,
        )
        self.codec = codec

    @property
    def vae(self) -> Vae:
        """The autoencoder itself; `encode` and `decode` are its use with scale and shift."""
        return self.codec.vae

    def encode(self, images: Images) -> Latents:
        self.check_sides(images)
        return self.codec.encode(images)

    def decode(self, z: Latents, *, clamp: bool = True) -> Images:
        return self.codec.decode(z, clamp=clamp)


def side_of(size: int | Sequence[int] | None, default: int) -> int:
    """Return the larger side of a size as configurations write it: one number, two, or nothing."""
    if not size:
        return default
    return size if isinstance(size, int) else max(size)
