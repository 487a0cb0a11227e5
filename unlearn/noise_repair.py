"""Backdoors that noise opens: the trigger found without knowing it, and taken out."""

import torch
from torch import Tensor

from diffusion.finetune import Model, Progress, Term, any_time, batches_of, descend, rows_of
from diffusion.losses import Losses, squared_error
from diffusion.model import Condition, DiffusionModel, Images
from diffusion.samplers import draw
from diffusion.schedule import Latents
from unlearn.noise import check_fit
from unlearn.tuning import finite


def spread(model: DiffusionModel, noise: Latents, t: int, condition: Condition | None = None) -> Tensor:
    """Return how much the clean z that a model sees in a batch of noise differs: the mean variance."""
    times = torch.full((len(noise),), t, device=noise.device)
    return model.predict_clean(noise, times, condition).var(0).mean()


def invert_noise(
    model: DiffusionModel,
    like: Latents,
    *,
    condition: Condition | None = None,
    span: tuple[int, int] = (600, 900),
    steps: int = 100,
    learning_rate: float = 0.1,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
    callback: Progress | None = None,
) -> Latents:
    """Return the shift of noise under which it matters least to what a model sees which noise it is.

    A trigger has one answer for all noise. As in TERD (Mo et al., ICML 2024), what is said of several noises
    is compared: Adam lowers their `spread` under the shift, as a share of that without it, at a time drawn
    anew in each step, late enough for the target, which nobody knows, to be missed by little. Elijah's
    condition (An et al., AAAI 2024), that at the last timestep the predicted noise moves by half of the
    shift, is for the ancestral sampler; with a backdoor for DDIM it moves by all of it, as it does in a clean
    model.

    Other shifts make a model say one thing, too: on the CIFAR-10 model a trigger was not found
    (docs/methods/backdoors.md).

    Args:
        model: suspected of a backdoor.
        like: any latent of its size, [1, channels, height, width].
        condition: what it is told.
        span: of 1000, times that are drawn.
        steps: updates.
        learning_rate: of Adam.
        batch_size: noises per update, two or more.
        generator: of times and noises.
        callback: told the share after each step.

    Raises NonFiniteError for a share that is not finite.
    """
    low, high = (each * len(model.schedule) // 1000 for each in span)
    shift = torch.zeros_like(like[:1]).requires_grad_()
    adam = torch.optim.Adam([shift], lr=learning_rate)
    for step in range(steps):
        t = int(torch.randint(low, high, (1,), generator=generator))
        alpha, sigma = model.schedule.level(t)
        noise = sigma * draw(like[:1].expand(batch_size, *like.shape[1:]), generator)
        with torch.no_grad():
            usual = spread(model, noise, t, condition)
        with torch.enable_grad():
            share = finite(spread(model, noise + (1 - alpha) * shift, t, condition) / usual)
        (shift.grad,) = torch.autograd.grad(share, shift)
        adam.step()
        if callback is not None:
            callback(step, share.detach()[None])
    return shift.detach()


def remove_noise(
    model: Model,
    images: Images,
    shift: Latents,
    *,
    condition: Condition | None = None,
    weight: float = 0.5,
    steps: int = 500,
    learning_rate: float = 2e-4,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    callback: Progress | None = None,
) -> Model:
    """Return a copy of a model to which shifted noise is noise like any other.

    The poisoned model is clean on clean noise, so that it teaches itself: in a picture with noise + r the
    student sees the clean picture that the teacher sees in it with the noise alone, and takes the rest for
    noise. It keeps what it says without the shift.

    Args:
        model: with the backdoor; nothing of it changes.
        images: in [0, 1]; those that the model draws of clean noise will do.
        shift: the trigger, known or found by `invert_noise`.
        condition: what the model is told about `images`.
        weight: of the first of the two losses, from 0 to 1; 1 - weight of the other.
        steps: updates of all weights.
        learning_rate: of AdamW.
        batch_size: pictures per update and loss.
        generator: of batches, times and noises.
        callback: as for `diffusion.finetune.train`, told the first loss.

    Raises:
        ValueError: no pictures, or a shift that does not fit.
        ArithmeticError: a loss is not finite.
    """
    if not len(images):
        raise ValueError("there is no picture to learn from")
    z = model.encode(images.to(model.device))
    check_fit(z, shift)
    student = model.trainable_copy().eval()

    def loss_of(moved: Latents) -> Term:
        batches = batches_of(len(z), batch_size, generator)

        def losses() -> Losses:
            chosen = next(batches).to(z.device)
            told, t = rows_of(condition, chosen), any_time(model, batch_size, generator)
            z_t = model.schedule.add_noise(z[chosen], draw(z[chosen], generator), t)
            _, sigma = model.schedule.at(t, z_t)
            with torch.no_grad():  # the clean picture stays, and the noise moves
                aim = model.predict(z_t, t, told) + model.target(torch.zeros_like(z_t), moved, t)
            return squared_error(student.predict(z_t + sigma * moved, t, told), aim)

        return losses

    terms = [(loss_of(shift), weight), (loss_of(torch.zeros_like(shift)), 1 - weight)]
    weights = list(student.denoiser.parameters())
    descend(terms, weights, steps=steps, learning_rate=learning_rate, callback=callback)
    return student.freeze()
