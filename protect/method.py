"""The protective method: a page of mathematics with its settings as fields, and the one way all of them
run."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from attacks import Objective, autocast, mean_of
from attacks.ball import Ball, Images, Linf, Losses
from diffusion.model import DiffusionModel
from imaging.tiles import crop_padding, pad_to_multiple
from protect.ensemble import Models, common_multiple, members
from protect.generator import Origin
from protect.shaping import Shape, Shaping, ascend, check_shape, shaping
from protect.survival import Handling, check_handling, lasting
from protect.targets import texture

Mask = Float[Tensor, "batch_or_1 1 height width"]
Progress = Callable[[int, Images, Losses], bool | None]


def networks_in(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Run networks in `precision` under autocast; float32 leaves them as they are."""
    return torch.autocast(device.type, precision) if precision != torch.float32 else nullcontext()


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
    survive: tuple[Handling, ...] = ()
    """Handling to last through: each step sees the picture after a random draw of it. It costs some strength
    where nothing is done to the picture."""
    shape: Shape = "none"
    """How the change is made to be seen less: alike in all colours, less where the picture is flat, or
    blurred."""

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 64 / 255:
            raise ValueError(f"eps must be above 0 and at most 64 (of 255); got {self.eps * 255:g}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")
        if self.step_size <= 0:
            raise ValueError(f"step size must be above 0; got {self.step_size * 255:g}")
        check_handling(self.survive)
        check_shape(self.shape)

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
    def origin(self) -> Origin | None:
        """Where the network comes from that the method runs in the place of a model; None for all others."""
        return None

    @property
    def ball(self) -> Ball:
        """The set of perturbations that are allowed."""
        return Linf(self.eps)

    def shaping(self, images: Images) -> Shaping | None:
        """What makes a perturbation of `images` of a free one in the ball; None where it is the free one."""
        return shaping(self.shape, images, self.eps)

    def settle(self, delta: Images, images: Images) -> Images:
        """What becomes of a perturbation that is blended of those of tiles; as a rule it stays as it is."""
        return delta

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

    def surrogates(self, models: Models) -> tuple[DiffusionModel, ...]:
        """Return the surrogates one by one.

        Raises ValueError if one of them lacks what the method needs, they do not go together, or the method
        takes only one.
        """
        found = members(models)
        for model in found:
            self.check(model)
        if len(found) > 1 and type(self).protect is not ProtectionMethod.protect:
            raise ValueError(f"{type(self).__name__} takes one model, not {len(found)} together")
        return found

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
        model: Models,
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
            model: the surrogate, frozen, on the device of `images`. Of several, each step follows the mean
                gradient, each first scaled to one magnitude; one member's graph is alive at a time.
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
            ValueError: when a model lacks what the method needs, several do not go together (see
                `surrogates`), or a mask is missing.
            attacks.NonFiniteError: when the surrogate overflows in `precision`.
        """
        return self.ascend_from(
            None,
            images,
            model,
            mask=mask,
            target=target,
            generator=generator,
            precision=precision,
            callback=callback,
        )

    def ascend_from(
        self,
        start: Images | None,
        images: Images,
        model: Models,
        *,
        mask: Mask | None = None,
        target: Images | None = None,
        generator: torch.Generator | None = None,
        precision: torch.dtype = torch.float32,
        callback: Progress | None = None,
    ) -> Images:
        """Do the work of `protect`, on from what an earlier call made of `images` where `start` is given.

        Raises ValueError if a start comes with a `shape`, and what `protect` raises.
        """
        surrogates = self.surrogates(model)
        if self.needs_mask and mask is None:
            raise ValueError(f"{type(self).__name__} needs a mask: 1, or white, on what is to be protected")
        size = images.shape[-2:]
        if target is None:
            target = texture(*size).to(images).expand_as(images[:1])
        multiple = common_multiple(surrogates)
        padded, target = pad_to_multiple(images, multiple), pad_to_multiple(target, multiple)
        mask = None if mask is None else pad_to_multiple(mask, multiple)
        with networks_in(precision, images.device):
            objectives = [
                self.objective(each, padded, target=target, mask=mask, generator=generator)
                for each in surrogates
            ]
        objective = objectives[0] if len(objectives) == 1 else mean_of(objectives)
        objective = objective if precision == torch.float32 else autocast(objective, precision)
        shape = self.shaping(padded)
        if start is not None and shape is not None:
            raise ValueError(f"what shape {self.shape} has made cannot be gone on from: take shape none")
        perturbed = ascend(
            lasting(objective, self.survive, generator),
            padded,
            self.ball,
            shape,
            steps=self.steps,
            step_size=self.schedule,
            start=None if start is None else pad_to_multiple(start, multiple),
            random_start=self.random_start,
            mask=mask,
            generator=generator,
            callback=callback,
        )
        return crop_padding(perturbed, *size)
