"""Ways back from noise: each returns the moves that take `z_t`, `t` steps into the noise, to a clean `z`.

`t` counts steps of the schedule, so `z_t` lies at timestep `t - 1`, and `steps` network calls are spread
evenly over it. None of them clips the predicted clean picture: a clamp inside would hide gradients from an
attacker who needs them.
"""

import math
from collections.abc import Callable

import torch

from diffusion.model import Condition, DiffusionModel
from diffusion.samplers import (
    Step,
    ddim_mean,
    ddpm_mean,
    denoise,
    posterior_deviation,
    solver_mean,
    steps_of,
)
from diffusion.schedule import Latents, NoiseSchedule
from purify.purifier import Draw, Images, Move

Reverse = Callable[[DiffusionModel, int, int, Condition | None], list[Move]]

BETA_START, BETA_END = 0.1, 20.0
LAST = 1e-5
"""Where DiffPure's integration ends, in the time of the equation, whose noise ends at 1."""


def walk(model: DiffusionModel, t: int, steps: int) -> list[Step]:
    """Return the steps from `t` down to a clean picture."""
    return list(steps_of(model.schedule, model.schedule.lowest(t, steps), (1.0, 0.0)))


def ddpm(model: DiffusionModel, t: int, steps: int, condition: Condition | None = None) -> list[Move]:
    """Ancestral sampling (Ho et al., 2020, arXiv 2006.11239), the smaller variance."""

    def to_move(step: Step) -> Move:
        deviation = posterior_deviation(step)

        def move(z: Latents, images: Images, draw: Draw) -> Latents:
            clean, _ = denoise(model, z, step, condition, None, 1.0, clip=False)
            mean = ddpm_mean(step, z, clean)
            return mean + deviation * draw(z) if deviation else mean

        return move

    return [to_move(step) for step in walk(model, t, steps)]


def ddim(model: DiffusionModel, t: int, steps: int, condition: Condition | None = None) -> list[Move]:
    """Deterministic DDIM (Song et al., 2021, arXiv 2010.02502)."""

    def to_move(step: Step) -> Move:
        def move(z: Latents, images: Images, draw: Draw) -> Latents:
            return ddim_mean(step, *denoise(model, z, step, condition, None, 1.0, clip=False))

        return move

    return [to_move(step) for step in walk(model, t, steps)]


def dpm_solver(model: DiffusionModel, t: int, steps: int, condition: Condition | None = None) -> list[Move]:
    """DPM-Solver++(2M) (Lu et al., 2022, arXiv 2211.01095).

    A step also needs the clean picture of the step before, which travels in further channels of the state.
    """
    walked = walk(model, t, steps)

    def to_move(step: Step, before: Step | None) -> Move:
        def move(state: Latents, images: Images, draw: Draw) -> Latents:
            z, remembered = state.split(model.latent_channels, 1) if before else (state, None)
            clean, _ = denoise(model, z, step, condition, None, 1.0, clip=False)
            ahead = clean
            if before is not None and remembered is not None and step.sigma_to > 0:
                ahead = clean + step.length / (2 * before.length) * (clean - remembered)
            arrived = solver_mean(step, z, ahead)
            return torch.cat([arrived, clean], 1) if step.sigma_to > 0 else arrived

        return move

    return [to_move(step, before) for step, before in zip(walked, [None, *walked[:-1]], strict=True)]


def vp_sde(model: DiffusionModel, t: int, steps: int, condition: Condition | None = None) -> list[Move]:
    """Euler-Maruyama on the reverse VP-SDE, as DiffPure was released (Nie et al., 2022, arXiv 2205.07460).

    Raises ValueError for a schedule other than the equation's own, and DDPM's linear one, whose limit it is.
    """
    return _euler(model, t, steps, condition, stochastic=True)


def vp_ode(model: DiffusionModel, t: int, steps: int, condition: Condition | None = None) -> list[Move]:
    """Euler's method on the probability-flow equation of the VP-SDE (Song et al., 2021, arXiv 2011.13456).

    Raises ValueError for a schedule other than the equation's own, and DDPM's linear one, whose limit it is.
    """
    return _euler(model, t, steps, condition, stochastic=False)


def _euler(
    model: DiffusionModel, t: int, steps: int, condition: Condition | None, *, stochastic: bool
) -> list[Move]:
    model.schedule.lowest(t, steps)  # the same limits
    share = 1.0 if stochastic else 0.5
    counts = [t * (steps - number) / steps for number in range(steps + 1)]
    if _follows_the_equation(model):
        # timestep c - 1 is the time c / 1000 exactly
        counts = [float(round(count)) for count in counts]
        called = [int(count) - 1 for count in counts]
    else:
        # DiffPure's: rounded in whole numbers, as accumulated float times skip or repeat a timestep
        called = [min(t * (steps - number) // steps, len(model.schedule) - 1) for number in range(steps)]

    def to_move(number: int) -> Move:
        time, timestep = counts[number] / 1000, called[number]
        length = time - max(counts[number + 1] / 1000, LAST)
        beta = BETA_START + (BETA_END - BETA_START) * time
        sigma = math.sqrt(1 - math.exp(-(BETA_END - BETA_START) * time**2 / 2 - BETA_START * time))

        def move(z: Latents, images: Images, draw: Draw) -> Latents:
            noise = model.predict_noise(z, torch.full((len(z),), timestep, device=z.device), condition)
            z = z + length * beta * (z / 2 - share * noise / sigma)
            return z + math.sqrt(beta * length) * draw(z) if stochastic else z

        return move

    return [to_move(number) for number in range(steps)]


def _follows_the_equation(model: DiffusionModel) -> bool:
    """Return whether a schedule is the VP-SDE's own and not its discrete twin.

    Raises ValueError if it is neither.
    """
    own, exact = model.schedule.alpha, NoiseSchedule.vp_sde().alpha
    if own.shape == exact.shape and torch.allclose(own, exact, atol=1e-6):
        return True
    if own.shape == exact.shape and torch.allclose(own, NoiseSchedule.linear().alpha, atol=1e-4):
        return False
    raise ValueError(
        f"the VP-SDE is the limit of DDPM's linear schedule; {model.name} has another: use ddpm or ddim"
    )


REVERSES: dict[str, Reverse] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm-solver": dpm_solver,
    "sde": vp_sde,
    "ode": vp_ode,
}
