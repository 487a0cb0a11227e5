"""One picture, or a batch of images, made hard for a diffusion model: the function behind every front end.

A picture larger than the surrogate is comfortable with is cut into overlapping tiles. Each tile is perturbed
on its own, and their perturbations are blended by weights that sum to one, so the bound holds for the blend
and no seam is left.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion.choice import Device, Precision, choose, network_precision
from diffusion.model import DiffusionModel
from imaging.io import read
from imaging.picture import Images, Picture
from imaging.quantize import quantize
from imaging.tiles import Box, TilePlan, plan_tiles
from protect.method import ProtectionMethod
from protect.methods import create
from protect.surrogate import load_for
from protect.targets import texture

Where = Bool[Tensor, "batch_or_1 1 height width"]
Masks = Float[Tensor, "batch_or_1 1 height width"]
Progress = Callable[[float], object]
MaskLike = str | os.PathLike[str] | Picture | Masks | Where

_BAND = 256
"""Rows that are rounded at a time, so that a large picture is never a float as a whole twice."""


class NothingToProtectError(ValueError):
    """A mask or transparency that leaves no pixel to change, or a perturbation that rounds to none."""


@overload
def protect_image(
    image: str | os.PathLike[str] | Picture,
    method: str | ProtectionMethod = ...,
    model: str | DiffusionModel = ...,
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
    model: str | DiffusionModel = ...,
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
    model: str | DiffusionModel = "auto",
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
        model: what `diffusion.load` accepts, or a model, which is used where it is.
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
        ValueError: a setting out of range, a mask of another size, or a method that needs a denoiser the
            model lacks.
        TypeError: a setting that the method does not have.
        attacks.NonFiniteError: the model overflowed.
    """
    method = create(method, **settings) if isinstance(method, str) else replace(method, **settings)
    if isinstance(image, (str, os.PathLike)):
        image = read(image)
    if isinstance(model, str):
        choice = choose(model, inpainting=method.needs_inpainting)
        model = load_for(method, choice, device=device, precision=precision)
    where = None if mask is None else read_mask(mask)
    work = _Work(method, model, seed, network_precision(precision, model.device))
    progress = callback or (lambda share: None)
    if isinstance(image, Picture):
        return _protect_picture(image, work, where, progress)
    return _protect_images(image, work, where, progress)


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


class _Work:
    """What is the same for every tile and frame."""

    def __init__(
        self, method: ProtectionMethod, model: DiffusionModel, seed: int, precision: torch.dtype
    ) -> None:
        self.method, self.model, self.seed, self.precision = method, model, seed, precision

    def plan(self, height: int, width: int) -> TilePlan:
        multiple = self.model.multiple
        size = max(self.model.comfortable // multiple, 1) * multiple
        return plan_tiles(
            height, width, size=size, overlap=size // 8 // multiple * multiple, multiple=multiple
        )

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
        images, steps = images.to(self.model.device), self.method.steps

        def step_done(step: int, perturbed: Images, losses: Tensor) -> None:
            progress(min(1.0, (step + 1) / steps))

        perturbed = self.method.protect(
            images,
            self.model,
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
    _check_mask_size(allowed, height, width)
    _check_budget(work.method.eps, 255)
    delta = work.perturbation(
        lambda box: _crop(images, box), lambda box: _crop(allowed, box), work.plan(height, width), progress
    )
    images, delta = images.detach().float(), delta.to(images.device)
    # Where nothing was to change even values between two levels stay.
    return torch.where(delta != 0, quantize(images + delta, images, work.method.eps), images)


def _protect_picture(picture: Picture, work: _Work, mask: Where | None, progress: Progress) -> Picture:
    _check_budget(work.method.eps, picture.levels)
    if mask is not None:
        _check_mask_size(mask, picture.height, picture.width)
    plan, integers = work.plan(picture.height, picture.width), picture.integers.clone()
    frames = [picture.frame(index) for index in range(picture.frames)]
    if not any(_allowed(frame, mask)(_whole(picture)).any() for frame in frames):
        raise NothingToProtectError(
            "every pixel that may change is fully transparent; there is nothing to protect"
        )
    for index, frame in enumerate(frames):
        if index and _same(frame, frames[index - 1]):
            integers[index] = integers[index - 1]  # equal frames and draws have equal results
            continue
        delta = work.perturbation(
            lambda box, frame=frame: frame.region(box).pixels,
            _allowed(frame, mask),
            plan,
            _part(progress, index, len(frames)),
        )
        _round_into(integers[index], frame, delta, work.method.eps)
    progress(1.0)
    if torch.equal(integers, picture.integers):
        raise NothingToProtectError(
            "no pixel changed by a whole level of the file; more steps or a larger step size may help"
        )
    return replace(picture, integers=integers)


def _allowed(frame: Picture, mask: Where | None) -> Callable[[Box], Where]:
    """Where a region of the frame may change: inside the mask and not fully transparent."""

    def allowed(box: Box) -> Where:
        visible = frame.region(box).visible_mask > 0
        return visible if mask is None else visible & _crop(mask, box)

    return allowed


def _round_into(integers: Tensor, frame: Picture, delta: Images, eps: float) -> None:
    """Write the frame plus `delta`, rounded within the bound, into its place, a band of rows at a time."""
    for top in range(0, frame.height, _BAND):
        box = Box(top, 0, min(top + _BAND, frame.height), frame.width)
        original = frame.region(box).pixels
        rounded = quantize(original + _crop(delta, box), original, eps, levels=frame.levels)
        integers[..., box.top : box.bottom, :] = (rounded * frame.levels).round_()[0].to(integers.dtype)


def _same(one: Picture, other: Picture) -> bool:
    alphas = one.alpha is None or (other.alpha is not None and torch.equal(one.alpha, other.alpha))
    return alphas and torch.equal(one.integers, other.integers)


def _whole(picture: Picture) -> Box:
    return Box(0, 0, picture.height, picture.width)


def _crop(planes: Tensor, box: Box) -> Tensor:
    return planes[..., box.top : box.bottom, box.left : box.right]


def _check_mask_size(mask: Where, height: int, width: int) -> None:
    if tuple(mask.shape[-2:]) != (height, width):
        raise ValueError(
            f"the mask is {mask.shape[-1]} x {mask.shape[-2]} px and the picture {width} x {height} px;"
            " save the mask at the picture's size"
        )


def _check_budget(eps: float, levels: int) -> None:
    if eps * levels + 1e-6 < 1:
        raise ValueError(
            f"eps={eps * levels:g}/{levels} is less than one level of the file, so nothing could change"
        )
