"""AtkPDM (Shih et al., 2024, arXiv 2408.11810): make a pixel diffusion model see another picture inside.

Models of plain pixels hardly notice what fools an autoencoder, and plain losses hardly move them. Their
features at the lowest resolution move further.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import lcm
from typing import ClassVar

import torch

from attacks import Objective
from attacks.ball import Images
from attacks.generative.features import AtkPdm as Attack
from attacks.generative.features import feature_distance
from diffusion.codec import LatentModel
from diffusion.features import bottleneck
from diffusion.load import load
from diffusion.model import DiffusionModel
from imaging.tiles import crop_padding, pad_to_multiple
from protect.ensemble import Models
from protect.method import Mask, Progress, ProtectionMethod, networks_in


@dataclass(frozen=True)
class AtkPDM(ProtectionMethod):
    """Ascend the distance of a U-Net's innermost features from the original's, at one random noise per step.

    The published method has no bound: a loss of VGG features leads the picture back instead. Here the change
    stays within `eps`, and no such loss is needed.
    """

    paper: ClassVar[str] = "arXiv 2408.11810"

    step_size: float = 0.5 / 255
    """Length of one step, in units of the full range; with a `codec`, of its latents."""
    prompt: str = ""
    """Not looked at: pixel models are told no text."""
    random_start: bool = True
    """Begin at a random point of the ball: at the picture itself the distance has no gradient."""
    times: tuple[int, ...] = (0, 500)
    """Lowest timestep at which features are compared, and the one after the highest."""
    codec: str | None = None
    """An autoencoder on this computer, such as sd-vae, whose latent is changed in the place of pixels
    (AtkPDM+): the change looks natural and ignores eps until it is cut down to it in the end, which weakens
    it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.times) != 2 or not 0 <= self.times[0] < self.times[1]:
            raise ValueError(f"times are two numbers, the lower first; got {', '.join(map(str, self.times))}")
        if self.codec is not None and (self.survive or self.shape != "none"):
            raise ValueError(
                "atkpdm changes the latents of a codec alone: leave out codec, or survive and shape"
            )

    def check(self, model: DiffusionModel) -> None:
        super().check(model)
        if isinstance(model, LatentModel):
            raise ValueError(
                f"AtkPDM is made against models of plain pixels, and {model.name} works on latents;"
                " take ddpm-cat-256 or another one, or a method such as mist"
            )
        bottleneck(model)
        if self.times[1] > len(model.schedule):
            raise ValueError(
                f"{model.name} has {len(model.schedule)} timesteps; got times to {self.times[1]}"
            )

    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        return feature_distance(model, images, times=self._times, generator=generator)

    @property
    def _times(self) -> tuple[int, int]:
        low, high = self.times
        return low, high

    def protect(
        self,
        images: Images,
        model: Models,
        *,
        mask: Mask | None = None,
        target: Images | None = None,
        generator: torch.Generator | None = None,
        precision: torch.dtype = torch.float32,
        callback: Progress | None = None,
    ) -> Images:
        """Perturb `images` within `eps`; see `ProtectionMethod.protect`.

        Also raises what `diffusion.load.load` does for a `codec` that is not here.
        """
        if self.codec is None:
            return super().protect(
                images,
                model,
                mask=mask,
                target=target,
                generator=generator,
                precision=precision,
                callback=callback,
            )
        (surrogate,) = self.surrogates(model)
        codec = _codec(self.codec, images.device)
        padded = pad_to_multiple(images, lcm(surrogate.multiple, codec.multiple))
        attack = Attack(steps=self.steps, step_size=self.step_size, times=self._times)
        with networks_in(precision, images.device):
            made = attack(
                surrogate, padded, codec=codec, ball=self.ball, generator=generator, callback=callback
            )
        made = crop_padding(made, *images.shape[-2:])
        return made if mask is None else images + mask * (made - images)


@lru_cache(maxsize=1)
def _codec(name: str, device: torch.device) -> DiffusionModel:
    # Not fetched: the command line's --offline does not reach here.
    return load(name, device=device, offline=True, denoiser=False)
