"""The protective method: a page of mathematics with its settings as fields, and the one way all of them
run."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from attacks import Objective, autocast, pgd
from attacks.ball import Ball, Images, Linf, Losses
from diffusion.model import DiffusionModel
from imaging.tiles import crop_padding, pad_to_multiple
from protect.targets import texture

Mask = Float[Tensor, "batch_or_1 1 height width"]
Progress = Callable[[int, Images, Losses], bool | None]


@dataclass(frozen=True)
class ProtectionMethod(ABC):
    """A bounded perturbation that spoils what a diffusion model makes of a picture.

    A method has two doors: most define `objective` and inherit `protect`; one with an outer loop (alternating
    training and perturbing) overrides `protect`. Its fields are its options everywhere: in Python, on the
    command line, in reports.
    """

    paper: ClassVar[str]

    eps: float = 8 / 255
    """Largest change of any channel of any pixel, in units of the full range."""
    steps: int = 100
    """Number of ascent steps."""
    step_size: float = 1 / 255
    """Length of one step, in units of the full range."""
    prompt: str = "a photo"
    """Caption under which the model sees the picture; a thief's will differ."""
    random_start: bool = False
    """Begin at a random point of the ball instead of at the picture."""

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 64 / 255:
            raise ValueError(f"eps must be above 0 and at most 64 (of 255); got {self.eps * 255:g}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")
        if self.step_size <= 0:
            raise ValueError(f"step size must be above 0; got {self.step_size * 255:g}")

    @property
    def needs_denoiser(self) -> bool:
        """Whether an autoencoder alone is not enough."""
        return True

    @property
    def needs_inpainting(self) -> bool:
        """Whether the denoiser has to be one that is made for inpainting."""
        return False

    @property
    def needs_mask(self) -> bool:
        """Whether the method has no meaning without a mask."""
        return False

    @property
    def ball(self) -> Ball:
        """The set of perturbations that are allowed."""
        return Linf(self.eps)

    def check(self, model: DiffusionModel) -> None:
        """Raise ValueError if `model` lacks what the method needs."""
        name = type(self).__name__
        if self.needs_denoiser and not model.has_denoiser:
            raise ValueError(
                f"{model.name} is an autoencoder alone and {name} needs a denoiser;"
                " take another model, or a method such as photoguard or mist-textural"
            )
        if self.needs_inpainting and not model.inpaints:
            raise ValueError(
                f"{model.name} is not made for inpainting, as {name} needs it;"
                " take sd15-inpainting, or builtin-inpainting to try it"
            )

    @abstractmethod
    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        """The per-image score to ascend; whatever does not change between steps is computed here, once.

        Arguments as for `protect`, with sides padded to the model's multiple; no `mask` is 1 everywhere.
        """

    def schedule(self, step: int) -> float:
        """The step size at `step` (0, 1, …); constant unless a method says otherwise."""
        return self.step_size

    def protect(
        self,
        images: Images,
        model: DiffusionModel,
        *,
        mask: Mask | None = None,
        target: Images | None = None,
        generator: torch.Generator | None = None,
        precision: torch.dtype = torch.float32,
        callback: Progress | None = None,
    ) -> Images:
        """Perturb `images` within `eps` so that `model` mistakes them.

        Args:
            images: float [batch, 3, height, width] in [0,1], of any size; padded to the model's multiple.
            model: the surrogate, frozen, on the device of `images`.
            mask: 1 where pixels may change, 0 where they stay bit for bit.
            target: the picture that targeted methods pull towards, same size; a generated texture by default.
            generator: randomness of time steps, noise and start. One draw serves the whole batch, so that the
                result for a picture does not depend on the pictures beside it.
            precision: dtype of the networks under autocast; the perturbation stays in float32.
            callback: see `attacks.pgd`.

        Returns:
            Perturbed images in [0,1] at float precision; `imaging.quantize` makes bytes of them within the
            same bound.

        Raises:
            ValueError: when the model lacks what the method needs (see `check`), or a mask is missing.
            attacks.NonFiniteError: when the surrogate overflows in `precision`.
        """
        self.check(model)
        if self.needs_mask and mask is None:
            raise ValueError(f"{type(self).__name__} needs a mask: 1, or white, on what is to be protected")
        size = images.shape[-2:]
        if target is None:
            target = texture(*size).to(images).expand_as(images[:1])
        padded, target = pad_to_multiple(images, model.multiple), pad_to_multiple(target, model.multiple)
        mask = None if mask is None else pad_to_multiple(mask, model.multiple)
        with torch.autocast(images.device.type, precision) if precision != torch.float32 else nullcontext():
            objective = self.objective(model, padded, target=target, mask=mask, generator=generator)
        perturbed = pgd(
            objective if precision == torch.float32 else autocast(objective, precision),
            padded,
            self.ball,
            steps=self.steps,
            step_size=self.schedule,
            random_start=self.random_start,
            mask=mask,
            generator=generator,
            callback=callback,
        )
        return crop_padding(perturbed, *size)
