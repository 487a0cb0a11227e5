"""One picture, or a batch of images, made hard for a diffusion model: the function behind every front end.

A picture larger than the surrogate is comfortable with is cut into overlapping tiles. Each tile is perturbed
on its own, and their perturbations are blended by weights that sum to one, so the bound holds for the blend
and no seam is left.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeGuard, cast, overload

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.choice import Device, Precision, network_precision
from diffusion.model import DiffusionModel
from imaging.io import read
from imaging.picture import Images, Integers, Picture
from imaging.quantize import quantize
from imaging.shortage import SMALLEST, in_smaller_parts, said_of
from imaging.tiles import Box, TilePlan
from protect.collective import CollectiveMethod, OnePictureError, one_picture
from protect.ensemble import Models, comfortable
from protect.frames import (
    NothingToProtectError,
    Where,
    allowed_in,
    check_budget,
    check_changed,
    check_mask_size,
    check_picture,
    crop,
    round_into,
)
from protect.method import ProtectionMethod
from protect.methods import create
from protect.surrogate import Names, choose_for, load_for
from protect.targets import texture
from protect.tiling import tiles_for

Masks = Float[Tensor, "batch_or_1 1 height width"]
Progress = Callable[[float], object]
MaskLike = str | os.PathLike[str] | Picture | Masks | Where


@overload
def protect_image(
    image: str | os.PathLike[str] | Picture,
    method: str | ProtectionMethod = ...,
    model: Names | Models = ...,
    *,
    mask: MaskLike | None = ...,
    seed: int = ...,
    device: Device = ...,
    precision: Precision = ...,
    callback: Progress | None = ...,
    **settings: Any,
) -> Picture: ...
@overload
def protect_image(
    image: Images,
    method: str | ProtectionMethod = ...,
    model: Names | Models = ...,
    *,
    mask: MaskLike | None = ...,
    seed: int = ...,
    device: Device = ...,
    precision: Precision = ...,
    callback: Progress | None = ...,
    **settings: Any,
) -> Images: ...
def protect_image(
    image: str | os.PathLike[str] | Picture | Images,
    method: str | ProtectionMethod = "mist",
    model: Names | Models = "auto",
    *,
    mask: MaskLike | None = None,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    callback: Progress | None = None,
    **settings: Any,
) -> Picture | Images:
    """Perturb a picture within `eps` so that a diffusion model mistakes it. Nothing is written.

    >>> protected = protect_image("drawing.png", "mist", eps=8 / 255)        # doctest: +SKIP

    Args:
        image: the path of a picture, a picture, or float images [batch, 3, height, width] in [0,1],
            multiples of 1/255 as in a file of 8 bits; others end up to half a level beyond `eps`.
        method: a name from `protect.methods.METHODS`, or a method such as `Mist(steps=40)`.
        model: what `diffusion.load` accepts, or a model, which is used where it is; several to protect
            against together are a list, or names with commas between. See `protect.surrogate.choose_for`.
        mask: white (1, or above a half) where pixels may change: a path, a picture or a tensor of the
            image's size.
        seed: decides every draw; a tile's or frame's draws do not depend on its neighbours.
        device: where to load the model, such as "cuda:1"; "auto" takes a GPU when there is one.
        precision: of the networks. "auto" is bfloat16 where the hardware multiplies it fast, else float32.
        callback: called after each step with the share of the work that is done, in (0, 1]; raise from it to
            stop.
        settings: fields of the method, such as `eps=8/255` or `steps=40`.

    Returns:
        What came in, a path as a Picture: rounded to the file's levels within `eps`, frames, alpha and
        metadata kept. Fully transparent and masked pixels keep their values bit for bit.

    Raises:
        imaging.PictureError: the picture or the mask cannot be read.
        protect.methods.UnknownMethodError, diffusion.known.UnknownModelError: with the nearest name.
        diffusion.known.MissingWeightsError: the model is not on this computer.
        NothingToProtectError: no pixel may change, or none did.
        ValueError: a setting out of range, a method that takes several pictures together, a mask of another
            size, none or one that is white everywhere for a method that needs one, a method that needs a
            denoiser the model lacks, or models that do not go together.
        TypeError: a setting that the method does not have.
        attacks.NonFiniteError: the model overflowed.
    """
    method = create(method, **settings) if isinstance(method, str) else replace(method, **settings)
    if isinstance(method, CollectiveMethod):
        raise OnePictureError(f"{one_picture(method)}, with protect_images")
    if isinstance(image, (str, os.PathLike)):
        image = read(image)
    where = None if mask is None else read_mask(mask)
    check_mask(method, where)
    surrogates = surrogates_for(method, model, device=device, precision=precision)
    work = _Work(method, surrogates, seed, network_precision(precision, surrogates[0].device))
    progress = callback or (lambda share: None)
    if isinstance(image, Picture):
        return _protect_picture(image, work, where, progress)
    return _protect_images(image, work, where, progress)


def surrogates_for(
    method: ProtectionMethod, model: Names | Models, *, device: Device, precision: Precision
) -> tuple[DiffusionModel, ...]:
    """Return the surrogates that a method is given, loaded if they are named; raises as `protect_image`."""
    if _named(model):
        chosen = choose_for(method, model).members
        model = [load_for(method, choice, device=device, precision=precision) for choice in chosen]
    return method.surrogates(cast(Models, model))


def read_mask(mask: MaskLike) -> Where:
    """Return where pixels may change: where a mask is brighter than mid-grey, and not transparent.

    Raises imaging.PictureError if it cannot be read, ValueError if it is a tensor of another shape or black
    everywhere.
    """
    if isinstance(mask, (str, os.PathLike)):
        mask = read(mask)
    if isinstance(mask, Picture):
        # Painted masks are often white on nothing, with white also stored where nothing was painted.
        opacity = 1.0 if mask.alpha is None else mask.alpha[:1].float() / mask.levels
        mask = mask.integers[:1].float().mean(1, keepdim=True) / mask.levels * opacity
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"a mask has the shape [1, 1, height, width]; got {tuple(mask.shape)}")
    where = (mask if mask.dtype == torch.bool else mask > 0.5).cpu()
    if not where.any():
        raise NothingToProtectError("the mask is black everywhere; paint white what is to be protected")
    return where


def check_mask(method: ProtectionMethod, where: Where | None) -> None:
    """Raise ValueError if the method needs a mask and there is none, or one that leaves nothing outside."""
    if not method.needs_mask:
        return
    name = type(method).__name__
    if where is None:
        raise ValueError(
            f"{name} needs a mask, a picture of the same size: white on what to protect,"
            " black on what a thief would repaint"
        )
    if where.all():
        raise ValueError(
            f"the mask is white everywhere, and {name} guards against the repainting of the rest;"
            " paint black what a thief would repaint"
        )


def _named(model: Names | Models) -> TypeGuard[Names]:
    word = (str, os.PathLike)
    if isinstance(model, (DiffusionModel, *word)):
        return isinstance(model, word)
    return all(isinstance(each, word) for each in model)


class _Work:
    """What is the same for every tile and frame."""

    def __init__(
        self,
        method: ProtectionMethod,
        surrogates: tuple[DiffusionModel, ...],
        seed: int,
        precision: torch.dtype,
    ) -> None:
        self.method, self.surrogates, self.seed, self.precision = method, surrogates, seed, precision

    def perturbation(
        self, tile: Callable[[Box], Images], where: Callable[[Box], Where], plan: TilePlan, progress: Progress
    ) -> Images:
        """The blended change of a whole image, float32 on the CPU, made from one tile at a time."""
        delta: Tensor | None = None
        for index, box in enumerate(plan.boxes):
            images, allowed = tile(box).float(), where(box)
            if delta is None:
                delta = torch.zeros(len(images), 3, plan.height, plan.width)
            if allowed.any():
                change = self._change(images, allowed, box, _part(progress, index, len(plan.boxes)))
                delta[..., box.top : box.bottom, box.left : box.right] += change * plan.weights(index)
            progress((index + 1) / len(plan.boxes))
        assert delta is not None
        return delta

    def _change(self, images: Images, allowed: Where, box: Box, progress: Progress) -> Images:
        images, steps = images.to(self.surrogates[0].device), self.method.steps

        def step_done(step: int, perturbed: Images, losses: Tensor) -> None:
            progress(min(1.0, (step + 1) / steps))

        perturbed = self.method.protect(
            images,
            self.surrogates if len(self.surrogates) > 1 else self.surrogates[0],
            mask=allowed.to(images),
            target=texture(box.height, box.width, top=box.top, left=box.left).to(images),
            generator=torch.Generator().manual_seed(self.seed),
            precision=self.precision,
            callback=step_done,
        )
        return (perturbed - images).cpu()


def _part(progress: Progress, index: int, count: int) -> Progress:
    """Progress of part number `index` as progress of the whole."""
    return lambda share: progress((index + share) / count)


def _protect_images(images: Images, work: _Work, mask: Where | None, progress: Progress) -> Images:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}".removeprefix("torch.")
        raise ValueError(f"images are float tensors [batch, 3, height, width] in [0,1]; got {got}")
    height, width = images.shape[-2:]
    allowed = torch.ones(1, 1, height, width, dtype=torch.bool) if mask is None else mask
    check_mask_size(allowed, height, width)
    check_budget(work.method.eps, 255)
    delta = work.perturbation(
        lambda box: crop(images, box),
        lambda box: crop(allowed, box),
        tiles_for(work.surrogates, height, width),
        progress,
    )
    images = images.detach().float()
    delta = work.method.settle(delta.to(images.device), images)
    # Where nothing was to change even values between two levels stay.
    return torch.where(delta != 0, quantize(images + delta, images, work.method.eps), images)


def _protect_picture(picture: Picture, work: _Work, mask: Where | None, progress: Progress) -> Picture:
    check_picture(picture, work.method.eps, mask)
    largest = comfortable(work.surrogates)
    smallest = largest if any(model.fixed_size for model in work.surrogates) else SMALLEST
    integers, side = in_smaller_parts(
        lambda side: _protected_integers(picture, work, mask, side, progress), largest, smallest
    )
    progress(1.0)
    notes = (*picture.notes, *said_of(side, largest))
    protected = replace(picture, integers=integers, notes=notes)
    check_changed(picture, protected)
    return protected


def _protected_integers(
    picture: Picture, work: _Work, mask: Where | None, side: int, progress: Progress
) -> Integers:
    plan = tiles_for(work.surrogates, picture.height, picture.width, side=side)
    integers = picture.integers.clone()
    frames = [picture.frame(index) for index in range(picture.frames)]
    for index, frame in enumerate(frames):
        if index and _same(frame, frames[index - 1]):
            integers[index] = integers[index - 1]  # equal frames and draws have equal results
            continue
        delta = work.perturbation(
            lambda box, frame=frame: frame.region(box).pixels,
            allowed_in(frame, mask),
            plan,
            _part(progress, index, len(frames)),
        )
        round_into(integers[index], frame, delta, work.method)
    return integers


def _same(one: Picture, other: Picture) -> bool:
    alphas = one.alpha is None or (other.alpha is not None and torch.equal(one.alpha, other.alpha))
    return alphas and torch.equal(one.integers, other.integers)
