"""The exact denoiser of Gaussian data: every sampler becomes an affine map with a known gain.

It is the simplest honest baseline of a trained denoiser (what second moments alone give), and a test world in
which purifiers and their gradients have closed forms.
"""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.model import Condition, Images, PixelSpace, Prediction
from diffusion.schedule import Latents, NoiseSchedule, Timesteps


class GaussianDenoiser(PixelSpace):
    """The diffusion model of data `z ~ N(mean, basis diag(variances) basis^T)`, `z = 2 images - 1`.

    The clean `z` expected behind `z_t` is `mean` plus, along each direction of the basis, the deviation of
    `z_t` from `alpha mean` times `alpha variance / (alpha^2 variance + sigma^2)` (the Wiener filter).
    Without a basis the variances are those of the entries.
    """

    mean: Tensor
    variances: Tensor
    basis: Tensor | None

    def __init__(
        self,
        mean: Float[Tensor, "channels height width"],
        variances: Float[Tensor, " entries"] | float,
        schedule: NoiseSchedule,
        *,
        basis: Float[Tensor, "entries entries"] | None = None,
        prediction: Prediction = "epsilon",
    ) -> None:
        super().__init__(
            schedule,
            prediction=prediction,
            name="gaussian",
            multiple=1,
            latent_channels=len(mean),
            comfortable=max(mean.shape[-2:]),
        )
        self.register_buffer("mean", mean)
        self.register_buffer("variances", torch.as_tensor(variances, dtype=mean.dtype).expand(mean.numel()))
        self.register_buffer("basis", basis)
        self.freeze()

    @classmethod
    def fitted(cls, images: Images, schedule: NoiseSchedule, *, prediction: Prediction = "epsilon") -> Self:
        """Fit mean and covariance to images in [0,1]."""
        z = (2 * images - 1).flatten(1).double()
        variances, basis = torch.linalg.eigh(torch.cov(z.T))
        mean = z.mean(0).view(images.shape[1:])
        variances = variances.clamp_min(0).float()
        return cls(mean.float(), variances, schedule, basis=basis.float(), prediction=prediction)

    @property
    def denoiser(self) -> nn.Module:
        return self

    def condition(self, prompts: Sequence[str]) -> Condition:
        return Condition()

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        alpha, sigma = self.schedule.at(t, z_t)
        mean, variances = self.mean.to(z_t.dtype), self.variances.to(z_t.dtype)
        gain = alpha.flatten(1) * variances / (alpha.flatten(1).square() * variances + sigma.flatten(1) ** 2)
        away = (z_t - alpha * mean).flatten(1)
        if self.basis is None:
            filtered = gain * away
        else:
            basis = self.basis.to(z_t.dtype)
            filtered = (gain * (away @ basis)) @ basis.T
        clean = mean + filtered.view_as(z_t)
        return self.target(clean, (z_t - alpha * clean) / sigma, t)
