"""PhotoGuard, diffusion attack (Salman et al., ICML 2023, arXiv 2302.06588): make the whole inpainting end in
a grey picture.

Gradients pass through every step of the sampler, exactly, at the graph memory of one network: states are kept
and each step is run again on the way back.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from attacks import L2, Objective, with_gradient
from attacks.adaptive.gradients import Step, trajectory
from attacks.ball import Ball, Images, Linf, Losses
from attacks.generative.chain import fresh
from diffusion.losses import split_gradient
from diffusion.model import Condition, DiffusionModel, Latents
from diffusion.samplers import ddim_mean, denoise, posterior_deviation, steps_of
from diffusion.tape import NoiseTape
from protect.method import Mask, ProtectionMethod
from protect.methods.draws import first_latent
from protect.targets import grey


@dataclass(frozen=True)
class PhotoGuardDiffusion(ProtectionMethod):
    """Descend the Euclidean distance between what a short inpainting makes of the picture and plain grey.

    The paper bounds the Euclidean norm of the change alone. Here `eps` bounds each value, as in every method,
    and `rms` can bound the norm beside it.
    """

    paper: ClassVar[str] = "arXiv 2302.06588"

    # A step costs some eight of the encoder attack's. The paper takes 200 of 10 draws each, on a GPU.
    steps: int = 50
    """Number of ascent steps; 200 in the paper."""
    step_size: float = 1 / 255
    """Length of one step, in units of the full range: of every value, or its root mean square under `rms`."""
    prompt: str = ""
    """Caption under which the model repaints; none in the paper."""
    rms: float | None = None
    """Largest root mean square of the change, in units of the full range, beside `eps`; or none. The paper's
    is 2.3 of 255, with a `step_size` of 0.144."""
    sampler_steps: int = 4
    """Steps of the sampler in each inpainting."""
    guidance: float = 7.5
    """Strength of classifier-free guidance; without a prompt there is none, whatever its strength."""
    draws: int = 1
    """Inpaintings whose gradients are averaged in one step; 10 in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler_steps < 1 or self.draws < 1:
            raise ValueError(
                f"sampler steps and draws must be at least 1; got {self.sampler_steps} and {self.draws}"
            )
        if self.rms is not None and not self.rms > 0:
            raise ValueError(f"rms must be above 0, or none; got {self.rms * 255:g}")

    @property
    def needs_inpainting(self) -> bool:
        return True

    @property
    def needs_mask(self) -> bool:
        return True

    @property
    def ball(self) -> Ball:
        return Linf(self.eps) if self.rms is None else Evenly(self.rms, self.eps)

    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        assert mask is not None
        condition, repainted = model.condition([self.prompt]), 1 - (mask >= 0.5).to(images)
        plain = grey(*images.shape[-2:]).to(images)

        def closeness(perturbed: Images) -> Losses:
            with torch.no_grad():
                seen = model.inpainting(condition, perturbed, repainted).concat
            assert seen is not None
            value, gradient = perturbed.new_zeros(len(perturbed)), torch.zeros_like(seen)
            for _ in range(self.draws):
                pipeline = self._pipeline(model, condition, seen, generator)
                losses, part = split_gradient(
                    lambda leaf, steps=pipeline: (trajectory(steps, leaf)[-1] - plain).flatten(1).norm(dim=1),
                    seen,
                )
                value, gradient = value + losses / self.draws, gradient + part / self.draws
            # Split chain rule: what the pictures' encoding was used for is differentiated and freed by now.
            encoded = model.inpainting(condition, perturbed, repainted).concat
            assert encoded is not None
            return with_gradient(encoded, -gradient, -value)

        return closeness

    def _pipeline(
        self, model: DiffusionModel, condition: Condition, seen: Latents, generator: torch.Generator | None
    ) -> list[Step]:
        """Steps (state, what the model sees) -> state, from fresh noise to images."""
        times = model.schedule.timesteps(self.sampler_steps, size=(seen.shape[-2], seen.shape[-1]))
        start = first_latent(model, seen, times[0], generator)
        tape = NoiseTape(fresh(len(seen), generator))
        blank = model.condition([""]) if self.prompt else None
        chain: list[Step] = [lambda *_: start]
        for step in steps_of(model.schedule, times, model.schedule.final):
            spread = posterior_deviation(step)  # all of DDPM's noise (eta = 1), as in the released code

            def walk(z_t: Latents, seen: Latents, step=step, spread=spread) -> Latents:
                told = replace(condition, concat=seen)
                untold = None if blank is None else replace(blank, concat=seen)
                clean, noise = denoise(model, z_t, step, told, untold, self.guidance if blank else 1.0)
                return ddim_mean(step, clean, noise, spread) + spread * tape.noise(step.number, z_t)

            chain.append(walk)
        return [*chain, lambda z, _: model.decode(z, clamp=False)]


@dataclass(frozen=True)
class Evenly:
    """A ball: the root mean square of a perturbation is at most `rms`, and no value of it beyond `eps`.

    It is the Euclidean ball in units that do not depend on the size of the picture: a radius of 16 at 512 px,
    for images in [-1,1], is 2.3 of 255.
    """

    rms: float
    eps: float

    def random_start(self, images: Images, generator: torch.Generator | None) -> Images:
        radius = self.rms * math.sqrt(images[0].numel())
        return self.project(L2(radius).random_start(images, generator))

    def steepest(self, gradient: Images) -> Images:
        return L2(1.0).steepest(gradient) * math.sqrt(gradient[0].numel())

    def project(self, delta: Images) -> Images:
        # The nearest point is the shrunk perturbation, clipped; by how much it is shrunk is found by halving.
        fits = self._fits(delta)
        low, high = torch.zeros_like(fits, dtype=delta.dtype), torch.ones_like(fits, dtype=delta.dtype)
        for _ in range(0 if fits.all() else 24):
            middle = (low + high) / 2
            inside = self._fits(delta * middle)
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return self._clipped(delta * torch.where(fits, 1.0, low))

    def distance(self, delta: Images) -> Losses:
        return delta.square().flatten(1).mean(1).sqrt()

    def _fits(self, delta: Images) -> Bool[Tensor, "batch 1 1 1"]:
        return (self.distance(self._clipped(delta)) <= self.rms).view(-1, 1, 1, 1)

    def _clipped(self, delta: Images) -> Images:
        return delta.clamp(-self.eps, self.eps)
