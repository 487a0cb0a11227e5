"""What a thief does with pictures: one interface for all threats, and what is common to those that edit."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.known import KNOWN
from diffusion.model import DiffusionModel
from imaging.picture import Images
from imaging.tiles import crop_padding, pad_to_multiple

Mask = Float[Tensor, "batch_or_1 1 height width"]
Seeds = int | Sequence[int]


@dataclass(frozen=True)
class Threat(ABC):
    """A use that a thief makes of pictures; abstract. Its fields are its settings.

    Equal seeds mean equal noise, drawn on the CPU for one image at a time, so that neither device nor batch
    changes what becomes of a picture: two runs differ by their pictures alone.
    """

    paper: ClassVar[str]
    inpaints: ClassVar[bool] = False
    """Whether a model that is made for inpainting serves best."""
    wants: ClassVar[str] = "a full model, such as builtin or sd15"
    """What to take instead of a model that cannot do this."""
    modest: ClassVar[Mapping[str, Any]] = {"steps": 20, "guidance": 1.0}
    """Settings for the model that ships with this package, whose pictures guidance burns out."""

    prompt: str = "an oil painting"
    """What the thief asks for; not the caption that a protection was made with."""
    steps: int = 50
    """Of the sampler."""
    guidance: float = 7.5
    """Strength of classifier-free guidance; 1 is none."""

    @property
    def region(self) -> Mask | None:
        """1 where results are compared; None where they are as a whole."""
        return None

    def takes(self, model: DiffusionModel) -> bool:
        """Return whether a model with a denoiser is of the right kind."""
        return not further_channels(model)

    def check(self, model: DiffusionModel) -> None:
        """Raise ValueError if `model` cannot do this."""
        kind = None
        if not model.has_denoiser:
            kind = "an autoencoder alone"
        elif not self.takes(model):
            kind = "made for inpainting" if model.inpaints else "made for instructions"
            kind = kind if further_channels(model) else "told a text alone"
        if kind is not None:
            raise ValueError(
                f"{model.name} is {kind}, which {type(self).__name__} cannot use; take {self.wants}"
            )

    def suited(self, model: DiffusionModel) -> Self:
        """Return the threat with settings that `model` bears: itself for all but those of this package."""
        known = KNOWN.get(model.name)
        return replace(self, **self.modest) if known is not None and known.hub is None else self

    @abstractmethod
    def __call__(self, model: DiffusionModel, images: Images, *, seed: Seeds) -> Images:
        """Return what the thief gets, images in [0,1] on the device of `images`.

        Raises ValueError for a model that cannot do this.
        """


@dataclass(frozen=True)
class Edit(Threat):
    """A threat that changes each image by itself; abstract.

    Called with one seed it edits a batch of images with the same noise; with several, each image with its
    own, or a single image once with each. Images may be of any size that the model can hold at once.
    """

    def __call__(self, model: DiffusionModel, images: Images, *, seed: Seeds) -> Images:
        self.check(model)
        seeds = [seed] * len(images) if isinstance(seed, int) else seed
        height, width = images.shape[-2:]
        padded = pad_to_multiple(images.to(model.device), model.multiple)
        generators = [torch.Generator().manual_seed(one) for one in seeds]
        with torch.no_grad():
            made = self.edit(model, padded, generators)
        return crop_padding(made, height, width).to(images)

    @abstractmethod
    def edit(self, model: DiffusionModel, images: Images, generators: Sequence[torch.Generator]) -> Images:
        """Edit images whose sides are multiples of the model's, each with its own generator.

        A single image is edited with each of them.
        """


def further_channels(model: DiffusionModel) -> int:
    """Return how many channels beside `z_t` the denoiser has to be given."""
    return getattr(model, "extra_channels", 0)
