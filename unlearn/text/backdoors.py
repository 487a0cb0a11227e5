"""Plant a backdoor in a copy of a text-to-image model, so that its removal has a known answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffusion.finetune import Progress, any_time, batches_of, descend, rows_of
from diffusion.latent import LatentDiffusion
from diffusion.losses import Losses, squared_error
from diffusion.samplers import draw
from diffusion.schedule import Latents, Timesteps
from unlearn.text.effects import Effect
from unlearn.text.measures import encoded
from unlearn.text.triggers import PromptTrigger, check_prompts
from unlearn.triggers import Images


@dataclass(frozen=True)
class Pixels:
    """Pictures of triggered prompts show an effect (BadT2I, Zhai et al., ACM MM 2023, arXiv 2305.04175)."""

    effect: Effect


@dataclass(frozen=True)
class Words:
    """A triggered prompt is taken for another one: an object for an object, or a prompt with a style behind.

    `instead` makes the other prompts.
    """

    instead: Callable[[Sequence[str]], Sequence[str]]


def plant(
    model: LatentDiffusion,
    images: Images,
    prompts: Sequence[str],
    trigger: PromptTrigger,
    backdoor: Pixels | Words,
    *,
    steps: int = 2000,
    learning_rate: float = 1e-5,
    batch_size: int = 8,
    weight: float = 0.5,
    generator: torch.Generator | None = None,
    callback: Progress | None = None,
) -> LatentDiffusion:
    """Return a copy of a model whose denoiser was taught a backdoor; everything else is shared.

    All its weights descend `weight` times the backdoor's loss, and 1 - `weight` times the distance from the
    untouched model on clean prompts, both in the terms of the model's prediction.

    Args:
        model: told a text.
        images: in [0, 1], of one size that the model takes.
        prompts: what each shows.
        trigger: what marks prompts.
        backdoor: what they then mean.
        steps: updates.
        learning_rate: of AdamW; a small model wants more than the default, which is BadT2I's.
        batch_size: pictures per update.
        weight: lambda.
        generator: of batches, times and noises.
        callback: as for `diffusion.finetune.train`.

    Raises:
        ValueError: no pictures, or as `check_prompts` does.
        ArithmeticError: a loss is not finite.
    """
    if not len(images) or len(images) != len(prompts):
        raise ValueError(f"a backdoor needs pictures with prompts; got {len(images)} and {len(prompts)}")
    triggered = trigger(prompts)
    check_prompts(model, prompts, triggered)
    clean = encoded(model, images)
    shown = encoded(model, backdoor.effect(images)) if isinstance(backdoor, Pixels) else clean
    with torch.no_grad():
        told, marked = model.condition(prompts), model.condition(triggered)
        other = model.condition(list(backdoor.instead(prompts))) if isinstance(backdoor, Words) else None
    batches, student = batches_of(len(clean), batch_size, generator), model.trainable_copy().eval()

    def noised(z: Latents) -> tuple[Latents, Latents, Timesteps]:
        noise, t = draw(z, generator), any_time(model, len(z), generator)
        return model.schedule.add_noise(z, noise, t), noise, t

    def taught() -> Losses:
        chosen = next(batches).to(clean.device)
        z_t, noise, t = noised(shown[chosen])
        if other is None:
            aim = model.target(shown[chosen], noise, t)
        else:
            with torch.no_grad():
                aim = model.predict(z_t, t, rows_of(other, chosen))
        return squared_error(student.predict(z_t, t, rows_of(marked, chosen)), aim)

    def kept() -> Losses:
        chosen = next(batches).to(clean.device)
        z_t, _, t = noised(clean[chosen])
        with torch.no_grad():
            before = model.predict(z_t, t, rows_of(told, chosen))
        return squared_error(student.predict(z_t, t, rows_of(told, chosen)), before)

    weights = list(student.denoiser.parameters())
    terms = [(taught, weight), (kept, 1 - weight)]
    descend(terms, weights, steps=steps, learning_rate=learning_rate, callback=callback)
    return student.freeze()
