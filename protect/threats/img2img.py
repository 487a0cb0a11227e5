"""SDEdit, known as img2img: noise the picture part of the way and denoise it towards a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from diffusion.model import DiffusionModel
from diffusion.samplers import edit
from imaging.picture import Images
from protect.threats.threat import Edit


@dataclass(frozen=True)
class Img2Img(Edit):
    """Edit by SDEdit (Meng et al., ICLR 2022, arXiv 2108.01073).

    Published evaluations use strengths of 0.1 to 0.3 (Diff-Protect), 0.25 to 0.5 (Mist) and 0.5 to 0.7
    (PhotoGuard), 50 to 100 DDIM steps, and a guidance of 7.5.
    """

    paper: ClassVar[str] = "arXiv 2108.01073"

    strength: float = 0.3
    """Share of the noise schedule that the edit runs through, in (0, 1]."""

    def edit(self, model: DiffusionModel, images: Images, generators: Sequence[torch.Generator]) -> Images:
        return edit(
            model,
            images,
            model.condition([self.prompt]),
            strength=self.strength,
            steps=self.steps,
            generator=generators,
            guidance=self.guidance,
        )
