"""Losses over a diffusion model, one number per picture, and two ways to a cheaper gradient.

The denoising loss of a latent model needs the gradient of the encoder and of the denoiser. Score
distillation leaves the denoiser's Jacobian out (`score_gradient`); the split chain rule computes it first
and frees it before the encoder runs (`split_gradient`). Both leave a gradient with respect to `z`; the sum of
its product with `z` is a loss that carries it on through the encoder.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.model import Condition, DiffusionModel
from diffusion.schedule import Latents, Timesteps

Losses = Float[Tensor, " batch"]


def denoising_loss(
    model: DiffusionModel, z: Latents, noise: Latents, t: Timesteps, condition: Condition | None = None
) -> Losses:
    """Return the training loss of each picture: the mean over `z`'s entries of `(predict - target)^2`.

    The graph runs through the denoiser to `z`. AdvDM ascends it (Liang et al., 2023, ICML, arXiv
    2302.04578, eq. 6).
    """
    z_t = model.schedule.add_noise(z, noise, t)
    return squared_error(model.predict(z_t, t, condition), model.target(z, noise, t))


def squared_error(one: Latents, other: Latents) -> Losses:
    """Return of each element of a batch the mean over its entries of the squared difference."""
    return (one - other).square().flatten(1).mean(1)


@torch.no_grad()
def score_gradient(
    model: DiffusionModel, z: Latents, noise: Latents, t: Timesteps, condition: Condition | None = None
) -> Latents:
    """Return `predict - target`, the score distillation gradient for `z` up to a positive factor.

    Compared with the gradient of `denoising_loss`, the denoiser's Jacobian is left out (Poole et al., 2022,
    arXiv 2209.14988, eq. 3), so the denoiser runs without a graph. Xue et al. (2024, ICLR, arXiv
    2311.12832) protect pictures with it. For models that say the clean `z` it is `target - predict`:
    against the gradient, `z` moves towards what the model sees in it, whatever the model says.
    """
    z_t = model.schedule.add_noise(z, noise, t)
    error = model.predict(z_t, t, condition) - model.target(z, noise, t)
    return -error if model.prediction == "sample" else error


def split_gradient(loss: Callable[[Latents], Losses], z: Latents) -> tuple[Losses, Latents]:
    """Return (value, gradient) of `loss` at `z`, both detached, with the graph of `loss` already freed.

    Carried on through a second encoding, this is the full chain rule at the peak memory of the larger of the
    two networks instead of their sum; exact, because encoding is deterministic:

        with torch.no_grad():
            z = model.encode(images)
        value, gradient = split_gradient(loss, z)
        (gradient * model.encode(images)).sum().backward()

    Works inside `torch.no_grad()`.
    """
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        losses = loss(leaf)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient
