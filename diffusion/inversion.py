"""From a picture back to the noise that becomes it, under guidance, too."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.model import Condition, DiffusionModel, to_clean, to_noise
from diffusion.samplers import Step, ddim_invert, ddim_mean, steps_of
from diffusion.schedule import Latents, Timesteps


def inverted(
    model: DiffusionModel, z: Latents, condition: Condition | None = None, *, timesteps: Sequence[int]
) -> list[Latents]:
    """Return DDIM's way back from a clean z, one `z_t` for each of `timesteps` and z itself last.

    See `samplers.ddim_invert`; timesteps go from noisy to clean.
    """
    states = [z]
    ddim_invert(model, z, condition, timesteps=timesteps, callback=lambda _, z_t: states.append(z_t))
    return states[::-1]


def null_text(
    model: DiffusionModel,
    states: Sequence[Latents],
    condition: Condition,
    *,
    timesteps: Sequence[int],
    guidance: float,
    rate: float = 0.1,
    rounds: Callable[[int], int] = lambda number: 10 + 2 * number,
) -> list[Condition]:
    """Return what to tell the model in the place of nothing, so that guided steps retrace an inversion.

    Null-text optimisation (Mokady et al., 2023, CVPR, arXiv 2211.09794): at each step AdamW fits the
    embedding of the empty prompt, or of no class, such that guided DDIM arrives at the next of `states`; the
    next step sets out from where that one really arrived. Every picture has embeddings of its own.

    Args:
        model: told a text or a class; of one that is told nothing every embedding is the same.
        states: as `inverted` returns them.
        condition: what the picture is said to be, one row or one for each picture.
        timesteps: those of `states`, from noisy to clean.
        guidance: of the walk that is to be retraced.
        rate: of AdamW.
        rounds: how many rounds of AdamW the step of this number gets.

    Returns:
        One condition for each timestep.
    """
    blank, field = _blank(model, len(states[0]))
    if field is None:
        return [blank for _ in timesteps]
    start = getattr(blank, field).detach()
    found: list[Condition] = []
    z_t = states[0]
    for step in steps_of(model.schedule, timesteps, model.schedule.final):
        t = torch.full((len(z_t),), step.t, device=z_t.device)
        with torch.no_grad():
            told = model.predict(z_t, t, condition)

        def follow(
            embedding: Tensor,
            z_t: Latents = z_t,
            t: Timesteps = t,
            step: Step = step,
            told: Latents = told,
        ) -> Latents:
            output = model.predict(z_t, t, replace(blank, **{field: embedding}))
            return _arrive(model, torch.lerp(output, told, guidance), z_t, step)

        leaf = start.clone().requires_grad_()
        adam = torch.optim.AdamW([leaf], lr=rate)
        for _ in range(rounds(step.number)):
            with torch.enable_grad():
                apart = (follow(leaf) - states[step.number + 1]).square().flatten(1).mean(1).sum()
            (leaf.grad,) = torch.autograd.grad(apart, leaf)
            adam.step()
        start = leaf.detach()
        found.append(replace(blank, **{field: start}))
        with torch.no_grad():
            z_t = follow(start)
    return found


def _arrive(model: DiffusionModel, output: Latents, z_t: Latents, step: Step) -> Latents:
    """Return where DDIM arrives, given what the network said at the start of a step."""
    clean = to_clean(model.prediction, output, z_t, step.alpha, step.sigma)
    return ddim_mean(step, clean, to_noise(model.prediction, output, z_t, step.alpha, step.sigma))


def _blank(model: DiffusionModel, batch: int) -> tuple[Condition, str | None]:
    """Return the empty prompt's condition with a row for each picture, and the field that can be fitted."""
    blank = model.condition([""])
    field = "tokens" if blank.tokens is not None else None
    if blank.labels is not None:
        blank, field = replace(blank, labels=model.rows([""])[:, 0]), "labels"
    rows = blank.expand(batch)
    return rows, field
