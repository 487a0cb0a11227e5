"""The noising and denoising that attacks in this folder pass pictures through, as replayable steps."""

import torch

from attacks.adaptive.gradients import Seeds, Step
from attacks.ball import Images
from diffusion.model import Condition, DiffusionModel
from diffusion.samplers import ddpm_mean, denoise, noised, posterior_deviation, steps_of
from diffusion.schedule import Latents
from diffusion.tape import NoiseTape


def denoised(
    model: DiffusionModel,
    seeds: Seeds,
    *,
    t: int,
    steps: int,
    stochastic: bool = True,
    condition: Condition | None = None,
) -> list[Step]:
    """Return the steps images -> noise of `t` -> images of DDPM, clipping the clean picture in between.

    Without `stochastic` the way back takes each step's mean (Ho et al., 2020, arXiv 2006.11239, eq. 7).
    """
    times, tape = model.schedule.lowest(t, steps), NoiseTape(seeds)

    def noise(images: Images, _: Images) -> Latents:
        z = model.encode(images)
        return noised(model.schedule, z, tape.noise(0, z), times[0])

    chain: list[Step] = [noise]
    for step in steps_of(model.schedule, times, (1.0, 0.0)):
        spread = posterior_deviation(step) if stochastic else 0.0

        def back(z_t: Latents, _: Images, step=step, spread=spread) -> Latents:
            clean, _noise = denoise(model, z_t, step, condition, None, 1.0)
            arrived = ddpm_mean(step, z_t, clean)
            return arrived + spread * tape.noise(step.number + 1, z_t) if spread else arrived

        chain.append(back)
    return [*chain, lambda z, _: model.decode(z)]


def fresh(batch: int, generator: torch.Generator | None) -> Seeds:
    """Return one seed for a batch, the same for each image, so that none depends on its neighbours."""
    return NoiseTape.fresh(1, generator).seeds.expand(batch)
