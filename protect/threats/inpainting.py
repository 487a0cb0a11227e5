"""Inpainting: keep a part of the picture, such as a face, and let the model paint the rest anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from diffusion.model import DiffusionModel
from diffusion.samplers import inpaint
from imaging.picture import Images
from imaging.tiles import pad_to_multiple
from protect.threats.threat import Edit, Mask


@dataclass(frozen=True, eq=False)
class Inpainting(Edit):
    """Repaint where a mask is 1, from pure noise (Rombach et al., 2022, arXiv 2112.10752).

    With an inpainting model it sees the rest; with any other the rest is put back after each step (blended
    latent diffusion, Avrahami et al., 2023, arXiv 2206.02779). Whether the owner has seen the mask is for
    the caller to know. Results are compared where they were repainted.
    """

    paper: ClassVar[str] = "arXiv 2112.10752"
    inpaints: ClassVar[bool] = True

    mask: Mask | None = None
    """1 where the picture is painted anew: [1, 1, height, width] of the images' own size."""

    @property
    def region(self) -> Mask | None:
        return self.mask

    def takes(self, model: DiffusionModel) -> bool:
        return model.inpaints or super().takes(model)

    def edit(self, model: DiffusionModel, images: Images, generators: Sequence[torch.Generator]) -> Images:
        if self.mask is None:
            raise ValueError("inpainting needs a mask: 1, or white, where the picture is to be painted anew")
        return inpaint(
            model,
            images,
            pad_to_multiple(self.mask.to(images), model.multiple),
            model.condition([self.prompt]),
            steps=self.steps,
            generator=generators,
            guidance=self.guidance,
        )
