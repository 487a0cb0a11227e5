"""LoRA: adapters of low rank, the usual way to imitate a style or a person."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffusion.finetune import low_rank, train
from diffusion.model import DiffusionModel
from diffusion.schedule import Latents
from protect.threats.learning import Learned, Learning


@dataclass(frozen=True)
class LowRank(Learning):
    """Train adapters on the attention of the denoiser (Hu et al., ICLR 2022, arXiv 2106.09685)."""

    paper: ClassVar[str] = "arXiv 2106.09685"
    modest: ClassVar[Mapping[str, Any]] = {
        **Learning.modest,
        "learning_steps": 200,
        "learning_rate": 1e-3,
        "batch_size": 4,
    }

    rank: int = 4
    """Of each adapter."""

    def learn(self, model: DiffusionModel, z: Latents, *, seed: int) -> Learned:
        generator = torch.Generator().manual_seed(seed)
        twin = low_rank(model, rank=self.rank, generator=generator)
        train(
            twin,
            z,
            twin.condition([self.template]),
            steps=self.learning_steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            generator=generator,
        )
        return Learned(twin, twin.condition)
