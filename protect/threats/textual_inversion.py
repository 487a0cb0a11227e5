"""Textual inversion: learn a word for what the pictures show and leave the model alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffusion.finetune import embed
from diffusion.model import DiffusionModel
from diffusion.schedule import Latents
from protect.threats.learning import Learned, Learning


@dataclass(frozen=True)
class TextualInversion(Learning):
    """Train the embeddings of a new word (Gal et al., ICLR 2023, arXiv 2208.01618)."""

    paper: ClassVar[str] = "arXiv 2208.01618"
    modest: ClassVar[Mapping[str, Any]] = {**Learning.modest, "learning_steps": 200, "batch_size": 4}

    learning_steps: int = 3000
    learning_rate: float = 5e-3
    vectors: int = 1
    """Tokens that the word stands for."""

    def learn(self, model: DiffusionModel, z: Latents, *, seed: int) -> Learned:
        concept = embed(
            model,
            z,
            self.template,
            steps=self.learning_steps,
            learning_rate=self.learning_rate,
            vectors=self.vectors,
            batch_size=self.batch_size,
            generator=torch.Generator().manual_seed(seed),
        )
        return Learned(model, concept.condition)
