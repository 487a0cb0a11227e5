"""InstructPix2Pix: tell a model in words what to change in a picture that it looks at all the time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from diffusion.latent import LatentDiffusion
from diffusion.model import Condition, DiffusionModel, to_clean, to_noise
from diffusion.samplers import ddim_mean, draw, steps_of
from imaging.picture import Images
from protect.threats.threat import Edit


@dataclass(frozen=True)
class InstructionEdit(Edit):
    """Follow an instruction, with two guidances (Brooks et al., CVPR 2023, arXiv 2211.09800, eq. 3)."""

    paper: ClassVar[str] = "arXiv 2211.09800"
    wants: ClassVar[str] = "one that follows instructions, such as instruct-pix2pix"

    prompt: str = "turn it into an oil painting"
    """The instruction."""
    image_guidance: float = 1.5
    """How much more the picture counts than for a model that does not see it; `guidance` is the text's."""

    def takes(self, model: DiffusionModel) -> bool:
        return isinstance(model, LatentDiffusion) and model.extra_channels == model.latent_channels

    def edit(self, model: DiffusionModel, images: Images, generators: Sequence[torch.Generator]) -> Images:
        assert isinstance(model, LatentDiffusion)
        told = model.editing(model.condition([self.prompt]), images)
        assert told.concat is not None
        seen = Condition(concat=told.concat)
        conditions = (told, seen, replace(seen, concat=torch.zeros_like(told.concat)))
        z_t = draw(told.concat.expand(len(generators), -1, -1, -1), generators)
        timesteps = model.schedule.timesteps(self.steps, size=(z_t.shape[-2], z_t.shape[-1]))
        for step in steps_of(model.schedule, timesteps, model.schedule.final):
            t = torch.full((len(z_t),), step.t, device=z_t.device)
            both, image, nothing = (model.predict(z_t, t, condition) for condition in conditions)
            output = nothing + self.image_guidance * (image - nothing) + self.guidance * (both - image)
            level = (z_t, step.alpha, step.sigma)
            clean, noise = (turn(model.prediction, output, *level) for turn in (to_clean, to_noise))
            z_t = ddim_mean(step, clean, noise)
        return model.decode(z_t)
