"""DreamBooth: fine-tune the whole denoiser on a few pictures of one subject."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffusion.finetune import imagine, train
from diffusion.model import DiffusionModel
from diffusion.schedule import Latents
from protect.threats.learning import Learned, Learning


@dataclass(frozen=True)
class DreamBooth(Learning):
    """Train all weights of the denoiser, rehearsing the class (Ruiz et al., CVPR 2023, arXiv 2208.12242).

    The text encoder, which most evaluations train along, stays as it is.
    """

    paper: ClassVar[str] = "arXiv 2208.12242"
    modest: ClassVar[Mapping[str, Any]] = {
        **Learning.modest,
        "learning_steps": 100,
        "learning_rate": 1e-4,
        "rehearsed": 8,
    }

    learning_rate: float = 1e-6
    batch_size: int = 2
    rehearsed: int = 200
    """Pictures of the class, made by the model itself, that training keeps in mind; 0 for none."""
    class_prompt: str = "a photo"
    """What those are asked for."""
    rehearsal_weight: float = 1.0
    """Weight of their loss."""

    def learn(self, model: DiffusionModel, z: Latents, *, seed: int) -> Learned:
        generator = torch.Generator().manual_seed(seed)
        prior = None
        if self.rehearsed:
            told = model.condition([self.class_prompt])
            prior = (imagine(model, told, z, count=self.rehearsed, generator=generator), told)
        twin = model.trainable_copy()
        twin.denoiser.float()
        train(
            twin,
            z,
            twin.condition([self.template]),
            steps=self.learning_steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            prior=prior,
            prior_weight=self.rehearsal_weight,
            generator=generator,
        )
        return Learned(twin.freeze(), twin.condition)
