"""Samplers: walks from a noisy `z_t` to a clean `z` and back, each a function to be read beside its paper.

All take the same arguments. `timesteps` go from noisy to clean, as `model.schedule.timesteps` returns them,
and `z_t` is at the level of the first. `guidance` other than 1 is classifier-free (Ho and Salimans, 2022,
arXiv 2207.12598): the prediction moves away from that for `unconditional`, the empty prompt by default.
`generator` is one, or one for each element of the batch, whose result then does not depend on the others.
`callback(step, z_t)` is called after each step.

Gradients flow from the result to `z_t` and to the condition: wrap calls in `torch.no_grad()` where none are
wanted.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

from diffusion.model import Condition, DiffusionModel, Images, Masks, to_clean, to_noise
from diffusion.schedule import Latents, NoiseSchedule

Generators = torch.Generator | Sequence[torch.Generator] | None
Callback = Callable[[int, Latents], None]


@dataclass(frozen=True)
class Step:
    """One step from timestep `t` at (alpha, sigma) to (alpha_to, sigma_to)."""

    number: int
    t: int
    alpha: float
    sigma: float
    alpha_to: float
    sigma_to: float

    @property
    def length(self) -> float:
        """How much half the log signal-to-noise ratio grows; infinite to a clean end."""
        return log_ratio(self.alpha_to, self.sigma_to) - log_ratio(self.alpha, self.sigma)


def ddim(
    model: DiffusionModel,
    z_t: Latents,
    condition: Condition | None = None,
    *,
    timesteps: Sequence[int],
    end: int | None = None,
    eta: float = 0.0,
    generator: Generators = None,
    unconditional: Condition | None = None,
    guidance: float = 1.0,
    callback: Callback | None = None,
) -> Latents:
    """Denoise with DDIM (Song et al., 2021, arXiv 2010.02502, eq. 12).

    It ends at timestep `end`, or where the schedule ends. It is deterministic unless `eta` is positive;
    `eta = 1` has the randomness of DDPM (eq. 16).
    """
    final = model.schedule.final if end is None else model.schedule.level(end)
    for step in steps_of(model.schedule, timesteps, final):
        clean, noise = denoise(model, z_t, step, condition, unconditional, guidance)
        spread = eta * posterior_deviation(step)
        z_t = ddim_mean(step, clean, noise, spread)
        if spread > 0:
            z_t = z_t + spread * draw(z_t, generator)
        if callback is not None:
            callback(step.number, z_t)
    return z_t


def ddim_invert(
    model: DiffusionModel,
    z: Latents,
    condition: Condition | None = None,
    *,
    timesteps: Sequence[int],
    unconditional: Condition | None = None,
    guidance: float = 1.0,
    callback: Callback | None = None,
) -> Latents:
    """Walk DDIM backwards, from a clean `z` to the noise that would become it.

    See Song et al. (2021, section 4.3). Returns `z_t` at the first of `timesteps`, which are given from
    noisy to clean, as to `ddim`.
    """
    alpha, sigma = model.schedule.final
    for number, t in enumerate(reversed(timesteps)):
        # the network is asked about the level that is being walked to, as the noise there is not known yet
        step = Step(number, t, alpha, sigma, *model.schedule.level(t))
        clean, noise = denoise(model, z, step, condition, unconditional, guidance)
        alpha, sigma = step.alpha_to, step.sigma_to
        z = alpha * clean + sigma * noise
        if callback is not None:
            callback(number, z)
    return z


def ddpm(
    model: DiffusionModel,
    z_t: Latents,
    condition: Condition | None = None,
    *,
    timesteps: Sequence[int],
    generator: Generators = None,
    unconditional: Condition | None = None,
    guidance: float = 1.0,
    callback: Callback | None = None,
) -> Latents:
    """Denoise by ancestral sampling (Ho et al., 2020, arXiv 2006.11239, algorithm 2).

    The variance is the smaller of the paper's two. It also leaps between timesteps that are not neighbours.
    Its last step adds no noise.
    """
    for step in steps_of(model.schedule, timesteps, (1.0, 0.0)):
        clean, _ = denoise(model, z_t, step, condition, unconditional, guidance)
        z_t = ddpm_mean(step, z_t, clean)
        if step.sigma_to > 0:
            z_t = z_t + posterior_deviation(step) * draw(z_t, generator)
        if callback is not None:
            callback(step.number, z_t)
    return z_t


def euler(
    model: DiffusionModel,
    z_t: Latents,
    condition: Condition | None = None,
    *,
    timesteps: Sequence[int],
    unconditional: Condition | None = None,
    guidance: float = 1.0,
    callback: Callback | None = None,
) -> Latents:
    """Follow the probability-flow equation with Euler's method, to zero noise.

    See Karras et al. (2022, arXiv 2206.00364). For a rectified flow the step is `z_t + (sigma_to - sigma)
    velocity`. For a diffusion model `z_t / alpha` moves by `(sigma_to / alpha_to - sigma / alpha) noise`.
    Both are the one line below.
    """
    for step in steps_of(model.schedule, timesteps, (1.0, 0.0)):
        clean, noise = denoise(model, z_t, step, condition, unconditional, guidance, clip=False)
        z_t = ddim_mean(step, clean, noise)
        if callback is not None:
            callback(step.number, z_t)
    return z_t


def dpm_solver_pp_2m(
    model: DiffusionModel,
    z_t: Latents,
    condition: Condition | None = None,
    *,
    timesteps: Sequence[int],
    unconditional: Condition | None = None,
    guidance: float = 1.0,
    callback: Callback | None = None,
) -> Latents:
    """Denoise with DPM-Solver++(2M) (Lu et al., 2022, arXiv 2211.01095, algorithm 2).

    The last step is of order one. Good pictures need 15 to 25 steps.
    """
    before, step_before = None, math.inf
    for step in steps_of(model.schedule, timesteps, (1.0, 0.0)):
        clean, _ = denoise(model, z_t, step, condition, unconditional, guidance, clip=False)
        ahead = clean
        if before is not None and step.sigma_to > 0:
            ahead = clean + step.length / (2 * step_before) * (clean - before)
        z_t = solver_mean(step, z_t, ahead)
        before, step_before = clean, step.length
        if callback is not None:
            callback(step.number, z_t)
    return z_t


def edit(
    model: DiffusionModel,
    images: Images,
    condition: Condition | None = None,
    *,
    strength: float,
    steps: int,
    noise: Latents | None = None,
    generator: Generators = None,
    unconditional: Condition | None = None,
    guidance: float = 1.0,
) -> Images:
    """Edit images by noising them part of the way and denoising them towards a condition.

    SDEdit (Meng et al., 2022, arXiv 2108.01073), known as img2img: `int(steps * strength)` steps of DDIM
    are run. A single image is edited once with each of several generators.

    Raises ValueError if that is not between 1 and `steps`.
    """
    run = int(steps * strength)
    if not 1 <= run <= steps:
        raise ValueError(f"strength {strength} of {steps} steps leaves {run} to run; expected 1 to {steps}")
    z = _for_each(generator, model.encode(images))
    timesteps = model.schedule.timesteps(steps, size=(z.shape[-2], z.shape[-1]))[steps - run :]
    z_t = noised(model.schedule, z, draw(z, generator) if noise is None else noise, timesteps[0])
    return model.decode(
        ddim(model, z_t, condition, timesteps=timesteps, unconditional=unconditional, guidance=guidance)
    )


def inpaint(
    model: DiffusionModel,
    images: Images,
    mask: Masks,
    condition: Condition | None = None,
    *,
    steps: int,
    noise: Latents | None = None,
    generator: Generators = None,
    unconditional: Condition | None = None,
    guidance: float = 1.0,
) -> Images:
    """Repaint the part of images where `mask` is 1, from pure noise.

    An inpainting model sees the rest of the image at each step. With any other model the rest is put back
    after each step, noised to that step's level (blended latent diffusion, Avrahami et al., 2023, arXiv
    2206.02779). A single image is repainted once with each of several generators.
    """
    if model.inpaints:
        condition = model.inpainting(condition or Condition(), images, mask)
        unconditional = replace(unconditional or Condition(), concat=condition.concat)
    z = _for_each(generator, model.encode(images))
    noise = draw(z, generator) if noise is None else noise
    hole = nn.functional.interpolate((mask >= 0.5).to(z.dtype), size=z.shape[-2:])
    timesteps = model.schedule.timesteps(steps, size=(z.shape[-2], z.shape[-1]))
    z_t = noise
    for t, end in zip(timesteps, [*timesteps[1:], None], strict=True):
        z_t = ddim(
            model, z_t, condition, timesteps=[t], end=end, unconditional=unconditional, guidance=guidance
        )
        if not model.inpaints:
            known = z if end is None else noised(model.schedule, z, noise, end)
            z_t = hole * z_t + (1 - hole) * known
    return model.decode(z_t)


def steps_of(schedule: NoiseSchedule, timesteps: Sequence[int], final: tuple[float, float]) -> Iterator[Step]:
    """Yield the steps through `timesteps` to the (alpha, sigma) that is `final`."""
    levels = [*(schedule.level(t) for t in timesteps), final]
    for number, (t, (here, there)) in enumerate(zip(timesteps, pairwise(levels), strict=True)):
        yield Step(number, t, *here, *there)


def denoise(
    model: DiffusionModel,
    z_t: Latents,
    step: Step,
    condition: Condition | None,
    unconditional: Condition | None,
    guidance: float,
    *,
    clip: bool = True,
) -> tuple[Latents, Latents]:
    """Return the clean `z` and the noise that the guided model sees in `z_t` at the start of a step.

    Pixel models' clean pictures are clamped to the range that their schedule names, if `clip`.
    """
    t = torch.full((len(z_t),), step.t, device=z_t.device)
    output = model.predict(z_t, t, condition)
    if guidance != 1:
        output = torch.lerp(model.predict(z_t, t, unconditional), output, guidance)
    clean = to_clean(model.prediction, output, z_t, step.alpha, step.sigma)
    noise = to_noise(model.prediction, output, z_t, step.alpha, step.sigma)
    limit = model.schedule.clip
    return (clean.clamp(-limit, limit) if clip and limit is not None else clean), noise


def ddim_mean(step: Step, clean: Latents, noise: Latents, spread: float = 0.0) -> Latents:
    """Return where DDIM arrives, before fresh noise of deviation `spread` is added (eq. 12 of its paper)."""
    return step.alpha_to * clean + math.sqrt(max(step.sigma_to**2 - spread**2, 0.0)) * noise


def ddpm_mean(step: Step, z_t: Latents, clean: Latents) -> Latents:
    """Return the mean of z at the step's end, given z at its start and the clean z (DDPM, eq. 7)."""
    kept = step.alpha / step.alpha_to * (step.sigma_to / step.sigma) ** 2
    return kept * z_t + (step.alpha_to - kept * step.alpha) * clean


def solver_mean(step: Step, z_t: Latents, clean: Latents) -> Latents:
    """Return where DPM-Solver++ arrives if the clean z stays at `clean` all the way."""
    # alpha_to (1 - exp(-length)), without a logarithm of zero at either end
    gain = step.alpha_to - step.alpha * step.sigma_to / step.sigma
    return step.sigma_to / step.sigma * z_t + gain * clean


def posterior_deviation(step: Step) -> float:
    """Return the standard deviation of z at the step's end, given z at its start and the clean z."""
    carried = step.alpha / step.alpha_to * step.sigma_to
    return step.sigma_to / step.sigma * math.sqrt(max(step.sigma**2 - carried**2, 0.0))


def log_ratio(alpha: float, sigma: float) -> float:
    """Return `log(alpha / sigma)`, half the log signal-to-noise ratio; infinite at the two ends."""
    if alpha == 0 or sigma == 0:
        return math.inf if alpha else -math.inf
    return math.log(alpha / sigma)


def noised(schedule: NoiseSchedule, z: Latents, noise: Latents, t: int) -> Latents:
    """Return `z` noised to one timestep for the whole batch."""
    alpha, sigma = schedule.level(t)
    return alpha * z + sigma * noise


def draw(like: Latents, generator: Generators = None) -> Latents:
    """Return Gaussian noise of the shape, device and dtype of `like`, drawn where the generator lives."""
    if isinstance(generator, Sequence):
        return torch.cat([draw(one[None], own) for one, own in zip(like, generator, strict=True)])
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def _for_each(generator: Generators, z: Latents) -> Latents:
    """Return `z`; that of a single image as often as there are generators."""
    return z.expand(len(generator), -1, -1, -1) if isinstance(generator, Sequence) and len(z) == 1 else z
