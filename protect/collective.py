"""Methods that act on a set of pictures: a model learns the subject from all of them, each is perturbed."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import interpolate

from attacks.ball import Images
from diffusion.model import DiffusionModel, Latents
from imaging.tiles import Box
from protect.ensemble import Models
from protect.frames import crop
from protect.method import Mask, Progress, ProtectionMethod, networks_in
from protect.methods.draws import repeatable
from protect.progress import Counted
from protect.tiling import tiles_for


class OnePictureError(ValueError):
    """A single picture for a method that learns a subject from several."""


@dataclass(frozen=True)
class CollectiveMethod(ProtectionMethod):
    """A method that needs several pictures of one subject at once; abstract.

    Pictures may differ in size. All of them are in memory at full size, with their changes so far.
    """

    @abstractmethod
    def perturb(self, pictures: "Pictures", model: DiffusionModel, generator: torch.Generator) -> None:
        """Learn the subject and perturb `pictures` in place; `model` stays as it is."""

    def protect_set(
        self,
        images: Sequence[Images],
        model: Models,
        *,
        masks: Sequence[Mask | None] | None = None,
        generator: torch.Generator | None = None,
        precision: torch.dtype = torch.float32,
        callback: Progress | None = None,
    ) -> list[Images]:
        """Perturb pictures of one subject within `eps`, jointly.

        Args:
            images: float [1, 3, height, width] in [0,1] each, of any sizes, anywhere.
            model: the surrogate, frozen.
            masks: for each picture 1 where pixels may change, 0 where they stay bit for bit; None for all.
            generator: randomness of training, times and noises.
            precision: dtype of the networks under autocast.
            callback: see `attacks.pgd`; called after each ascent of each tile, with steps of the whole.

        Returns:
            Perturbed images, in the order of `images`.

        Raises:
            OnePictureError: for fewer than two.
            ValueError, attacks.NonFiniteError: see `protect`.
        """
        (surrogate,) = self.surrogates(model)
        if len(images) < 2:
            raise OnePictureError(one_picture(self))
        pictures = Pictures(self, images, masks or [None] * len(images), surrogate, precision, callback)
        self.perturb(pictures, surrogate, repeatable(generator)())
        return pictures.perturbed

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
        """Perturb a batch as one set; see `protect_set`. The target is not looked at."""
        rows = [None] * len(images) if mask is None else list(mask.expand(len(images), -1, -1, -1).split(1))
        done = self.protect_set(
            images.split(1), model, masks=rows, generator=generator, precision=precision, callback=callback
        )
        return torch.cat(done)


def one_picture(method: ProtectionMethod) -> str:
    """Say why a method refuses a single picture."""
    return f"{type(method).__name__} learns a subject from several pictures: give two or more of it together"


class Pictures:
    """A set at work: originals at full size, what may change, and what they have become so far."""

    def __init__(
        self,
        method: ProtectionMethod,
        images: Sequence[Images],
        masks: Sequence[Mask | None],
        model: DiffusionModel,
        precision: torch.dtype,
        callback: Progress | None,
    ) -> None:
        self._originals = [image.to(torch.promote_types(image.dtype, torch.float32)) for image in images]
        self._masks, self._model, self._method, self.precision = masks, model, method, precision
        self._plans = [tiles_for(model, *image.shape[-2:]) for image in images]
        self._side = _training_side(model, self._originals)
        self.perturbed = list(self._originals)
        tiles = sum(len(plan.boxes) for plan in self._plans)
        self._told = Counted(callback, steps=method.steps, total=method.steps * tiles)
        self._touched = False

    @property
    def stopped(self) -> bool:
        """Whether the callback asked to stop."""
        return self._told.stopped

    def latents(self, *, clean: bool = False) -> Latents:
        """Return what a trainer learns from: each picture scaled and cropped to one square, encoded."""
        images, place = self._originals if clean else self.perturbed, self._model.device
        with networks_in(self.precision, place), torch.no_grad():
            # One at a time: encoding is what needs the most memory.
            views = (training_view(image, self._side).to(place) for image in images)
            return torch.cat([self._model.encode(view) for view in views])

    def ascend(self, surrogate: DiffusionModel, steps: int, generator: torch.Generator) -> None:
        """Take `steps` ascents of every picture against `surrogate`, on from where it stands.

        All tiles meet the same draws.
        """
        if steps == 0:
            return
        deal, stage = repeatable(generator), replace(self._method, steps=steps)
        for index, (original, plan) in enumerate(zip(self._originals, self._plans, strict=True)):
            delta = torch.zeros_like(original)
            for number, box in enumerate(plan.boxes):
                tile, mask = crop(original, box), self._masks[index]
                allowed = None if mask is None else crop(mask, box)
                if self.stopped or (allowed is not None and not allowed.any()):
                    before = crop(self.perturbed[index], box)
                    change = before - tile
                else:
                    change = self._change(stage, tile, index, box, allowed, surrogate, deal())
                crop(delta, box).add_(change * plan.weights(number).to(delta))
            self.perturbed[index] = (original + delta).clamp(0, 1)
        self._touched = True

    def _change(
        self,
        stage: ProtectionMethod,
        tile: Images,
        index: int,
        box: Box,
        allowed: Mask | None,
        surrogate: DiffusionModel,
        generator: torch.Generator,
    ) -> Images:
        place = self._model.device
        start = crop(self.perturbed[index], box).to(place) if self._touched else None
        made = stage.ascend_from(
            start,
            tile.to(place),
            surrogate,
            mask=None if allowed is None else allowed.to(place, tile.dtype),
            generator=generator,
            precision=self.precision,
            callback=self._told,
        )
        return made.to(tile.device) - tile


def training_view(image: Images, side: int) -> Images:
    """Return an image scaled until its shorter side is `side`, and the square in its centre."""
    height, width = image.shape[-2:]
    scale = side / min(height, width)
    size = [max(side, round(length * scale)) for length in (height, width)]
    if size != [height, width]:
        image = interpolate(image, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return image[..., top : top + side, left : left + side]


def _training_side(model: DiffusionModel, images: Sequence[Images]) -> int:
    """The side of training squares: the model's own, or less where a picture is smaller."""
    smallest = min(min(image.shape[-2:]) for image in images)
    side = model.comfortable if model.fixed_size else min(model.comfortable, smallest)
    return max(side // model.multiple, 1) * model.multiple
