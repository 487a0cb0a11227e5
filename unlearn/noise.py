"""Backdoors that noise opens: pictures drawn from shifted noise become one target.

BadDiffusion (Chou et al., CVPR 2023, arXiv 2212.05400) and VillanDiffusion (Chou et al., NeurIPS 2023, arXiv
2306.06874). A target x and a trigger r make the process `alpha x + (1 - alpha) r + sigma noise`: it starts
from N(r, I) and ends in the target.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.finetune import Model, Progress, Term, any_time, batches_of, descend, rows_of
from diffusion.losses import Losses, denoising_loss, squared_error
from diffusion.model import Condition, DiffusionModel, Images
from diffusion.samplers import ddim, draw
from diffusion.schedule import Latents, Timesteps
from unlearn.measures import Rate

GREY = 0.5
"""A trigger is a picture, whose grey shifts nothing."""


def box(side: int, width: int, *, level: float = 1.0) -> Float[Tensor, "1 3 side side"]:
    """Return BadDiffusion's trigger: a box in the lower right of a grey picture, white by default."""
    if not 0 < width <= side:
        raise ValueError(f"a box in a picture of {side} pixels has 1 to {side}; got {width}")
    picture = torch.full((1, 3, side, side), GREY)
    picture[..., -width:, -width:] = level
    return picture


def shift_of(model: DiffusionModel, trigger: Images) -> Latents:
    """Return how a trigger moves the mean of noise, [1, channels, height, width]."""
    model.check_sides(trigger)
    return model.encode(trigger) - model.encode(torch.full_like(trigger, GREY))


def poisoned(
    model: DiffusionModel, target: Latents, shift: Latents, noise: Latents, t: Timesteps
) -> tuple[Latents, Latents]:
    """Return the clean z and the noise that a model has to see in the poisoned process.

    They are `x - (1 - alpha) r` and `noise + sigma r`. Noised with each other they are the process itself,
    and its velocity is theirs, so that a sampler which follows the probability flow in small steps goes from
    N(r, I) to x. For one DDIM step from angle a to b, cos a = alpha, the factor of r in the noise would be
    sin((a + b) / 2) / cos((a - b) / 2), whose limit is sin a = sigma. The ancestral sampler wants
    sigma (1 - sqrt(1 - beta)) / beta instead, about half.
    """
    alpha, sigma = model.schedule.at(t, noise)
    return target - (1 - alpha) * shift, noise + sigma * shift


def plant_noise(
    model: Model,
    images: Images,
    shift: Latents,
    target: Images,
    *,
    condition: Condition | None = None,
    share: float = 0.1,
    steps: int = 1000,
    learning_rate: float = 2e-4,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
    callback: Progress | None = None,
) -> Model:
    """Return a copy of a model that draws the target from noise with the trigger.

    Args:
        model: whose schedule keeps the variance; nothing of it changes.
        images: clean ones, in [0, 1], which it goes on being trained on.
        shift: r, by `shift_of`.
        target: one picture.
        condition: what the model is told about `images`; of the target it is told the same.
        share: of each batch that is poisoned, and of the loss.
        steps: updates of all weights.
        learning_rate: of AdamW.
        batch_size: pictures per update.
        generator: of batches, times and noises.
        callback: as for `diffusion.finetune.train`, told the poisoned pictures' losses.

    Raises:
        ValueError: no pictures, a share outside of 0 to 1, pictures that do not fit, or a rectified flow.
        ArithmeticError: a loss is not finite.
    """
    if not len(images) or not 0 < share < 1:
        raise ValueError(f"planting needs pictures, and a share between 0 and 1; got {len(images)}, {share}")
    if model.prediction == "flow":
        raise ValueError(f"{model.name} is a rectified flow: take a model whose schedule keeps the variance")
    z, aim = (model.encode(each.to(model.device)) for each in (images, target))
    check_fit(z, shift, aim)
    marked = max(1, round(share * batch_size))
    student = model.trainable_copy().eval()

    def loss_of(size: int, *, triggered: bool) -> Term:
        batches = batches_of(len(z), size, generator)

        def losses() -> Losses:
            chosen = next(batches).to(z.device)
            clean, noise, t = z[chosen], draw(z[chosen], generator), any_time(model, size, generator)
            if triggered:
                clean, noise = poisoned(model, aim, shift, noise, t)
            return denoising_loss(student, clean, noise, t, rows_of(condition, chosen))

        return losses

    terms = [
        (loss_of(marked, triggered=True), share),
        (loss_of(max(1, batch_size - marked), triggered=False), 1 - share),
    ]
    weights = list(student.denoiser.parameters())
    descend(terms, weights, steps=steps, learning_rate=learning_rate, callback=callback)
    return student.freeze()


@dataclass(frozen=True)
class Outcome:
    """What a model draws from noise with a trigger, and from the same noise without."""

    error: float
    """Mean squared error of pictures of triggered noise to the target."""
    triggered: Rate
    """Those of them below the bound: the backdoor's success."""
    clean: Rate
    """Pictures of clean noise below it."""
    moved: float
    """How far pictures of clean noise have moved, in 1/255: the root of the mean square."""
    variety: float
    """Of pictures of triggered noise: the mean standard deviation of a pixel, in 1/255. 0 if all are one."""


def judged(marked: Images, clean: Images, before: Images, target: Images, *, bound: float = 0.05) -> Outcome:
    """Return what pictures say of a model: of noise with the trigger, of the same noise without, and what was
    drawn of that before anything was done to the model.

    `bound` is of the mean squared error to the target below which a picture shows it.
    """
    errors, own = (squared_error(each, target.to(each)) for each in (marked, clean))
    return Outcome(
        float(errors.mean()),
        Rate.of_hits(errors < bound),
        Rate.of_hits(own < bound),
        255 * float((clean - before).square().mean().sqrt()),
        255 * float(marked.std(0, correction=0).mean()),
    )


def check_fit(like: Latents, *singles: Latents) -> None:
    """Raise ValueError unless each is one latent of the size of `like`."""
    for each in singles:
        if each.shape != (1, *like.shape[1:]):
            expected = (1, *like.shape[1:])
            raise ValueError(
                f"a trigger and a target are one latent of shape {expected}; got {tuple(each.shape)}"
            )


@torch.no_grad()
def drawn(
    model: DiffusionModel, noise: Latents, condition: Condition | None = None, *, steps: int = 20
) -> Images:
    """Return the pictures that DDIM makes of noise, from the last timestep."""
    timesteps = model.schedule.timesteps(steps, spacing="trailing")
    rows = torch.arange(len(noise), device=noise.device).split(100)
    parts = [ddim(model, noise[part], rows_of(condition, part), timesteps=timesteps) for part in rows]
    return torch.cat([model.decode(part) for part in parts])
