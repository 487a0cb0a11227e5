"""The exact denoiser of a finite set of pictures: a diffusion model with nothing left to learn.

If the data are `N` equally likely pictures, the posterior mean of the clean picture given a noisy one has a
closed form (Karras et al., 2022, arXiv 2206.00364, appendix B.3): an average of the pictures, weighted by
how well each explains the noisy one. It makes tests with a known right answer, and lets every command run
without a download.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.model import Condition, Images, PixelSpace, Prediction
from diffusion.schedule import Latents, NoiseSchedule, Timesteps

Pictures = Float[Tensor, "pictures 3 height width"]
Weights = Float[Tensor, "batch pictures"]


class IdealDenoiser(PixelSpace):
    """The diffusion model whose data are exactly `pictures`, under any schedule.

    As for pixel models, `z = 2 images - 1`. `prediction` chooses the terms in which `predict` speaks.
    Prompts are ignored: there is nothing to condition on. Images to encode have the pictures' size.
    """

    pictures: Pictures

    def __init__(
        self, pictures: Pictures, schedule: NoiseSchedule, *, prediction: Prediction = "epsilon"
    ) -> None:
        super().__init__(
            schedule,
            prediction=prediction,
            name="ideal",
            multiple=1,
            latent_channels=3,
            comfortable=max(pictures.shape[-2:]),
        )
        self.register_buffer("pictures", 2 * pictures - 1)
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return self

    def encode(self, images: Images) -> Latents:
        if images.shape[1:] != self.pictures.shape[1:]:
            expected, got = tuple(self.pictures.shape[1:]), tuple(images.shape[1:])
            raise ValueError(f"this model knows pictures of shape {expected} only; got {got}: resize first")
        return 2 * images - 1

    def condition(self, prompts: Sequence[str]) -> Condition:
        return Condition()

    def posterior(self, z_t: Latents, t: Timesteps) -> Weights:
        """Return the probability that each picture is the one behind `z_t`."""
        alpha, sigma = (level.flatten(1) for level in self.schedule.at(t, z_t))
        floor = alpha.clamp(min=1e-4)  # pure noise, alpha = 0, favours no picture
        # expanding the square would cancel: at sigma = 0.01 the logits would be off by tenths in float32
        distance = torch.cdist(
            z_t.flatten(1) / floor,
            self.pictures.to(z_t.dtype).flatten(1),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        return torch.softmax(-(alpha * distance / sigma).square() / 2, dim=1)

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        alpha, sigma = self.schedule.at(t, z_t)
        pictures = self.pictures.to(z_t.dtype)
        clean = (self.posterior(z_t, t) @ pictures.flatten(1)).view_as(z_t)
        return self.target(clean, (z_t - alpha * clean) / sigma, t)
