"""A whole picture through a purifier: any size by tiles, every frame, and nothing that was not meant to
change."""

import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.choice import Device, Precision, choose, network_precision, pick_device
from diffusion.model import DiffusionModel
from imaging.io import read
from imaging.picture import Images, Integers, Picture
from imaging.shortage import SMALLEST, in_smaller_parts, said_of
from imaging.tiles import TilePlan, crop_padding, pad_to_multiple, plan_tiles
from purify.methods import create, entry
from purify.purifier import Purifier

Progress = Callable[[float], object]

_ALONE = 1024
"""Side of the tiles of purifiers without a model."""


def purify_image(
    image: str | os.PathLike[str] | Picture,
    method: str | Purifier = "diffpure",
    model: str | DiffusionModel = "auto",
    *,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    callback: Progress | None = None,
    **settings: object,
) -> Picture:
    """Purify a picture. Nothing is written.

    Args:
        image: a path or a picture, of any size.
        method: a name from `purify.methods.METHODS`, or a purifier.
        model: the prior: what `diffusion.load` accepts, or a model, which is used where it is.
        seed: decides all noise; each tile has its own.
        device: where to load the model; "auto" takes a GPU when there is one.
        precision: of the networks; "auto" is bfloat16 where the hardware multiplies it fast.
        callback: called with the share of the work that is done; raise from it to stop.
        settings: of the method, such as `t=100`.

    Returns:
        The picture with purified pixels, rounded to its own levels. Alpha, metadata and fully transparent
        pixels stay as they are.

    Raises:
        imaging.PictureError: the picture cannot be read.
        purify.methods.UnknownMethodError: with the nearest name; and `diffusion.load`'s errors.
        ValueError: for settings that the method does not have or that are out of range.
    """
    picture = image if isinstance(image, Picture) else read(image)
    if isinstance(method, str):
        prior = None
        if entry(method).needs_model:
            prior = model
            if isinstance(prior, str):
                prior = choose(prior).load(device=device, precision=precision)
        method = create(method, prior, **settings)
    elif settings:
        raise ValueError(f"a purifier that is made already takes no {next(iter(settings))}")
    place, progress = _place(method, device), callback or (lambda share: None)
    dtype = network_precision(precision, place)
    prior, purifier = _prior(method), method
    largest = _ALONE if prior is None else prior.comfortable
    smallest = largest if prior is not None and prior.fixed_size else SMALLEST

    def purified(side: int) -> Integers:
        with torch.no_grad(), torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
            return _purified(picture, purifier, _plan(prior, picture, side), seed, place, progress)

    integers, side = in_smaller_parts(purified, largest, smallest)
    return replace(picture, integers=integers, notes=(*picture.notes, *said_of(side, largest)))


def _purified(
    picture: Picture,
    purifier: Purifier,
    plan: TilePlan,
    seed: int,
    place: torch.device,
    progress: Progress,
) -> Integers:
    tile, integers = _tile_of(purifier), picture.integers.clone()
    total = picture.frames * len(plan.boxes)
    for frame in range(picture.frames):
        shown = picture.frame(frame)
        made = torch.zeros(3, plan.height, plan.width)
        for index, box in enumerate(plan.boxes):
            images = shown.region(box).pixels.float().to(place)
            purified = tile(purifier.seeded(seed + index), images)
            made[:, box.top : box.bottom, box.left : box.right] += purified[0].cpu() * plan.weights(index)
            progress((frame * len(plan.boxes) + index + 1) / total)
        integers[frame] = shown.with_pixels(made[None]).integers[0]
    return integers


def _place(purifier: Purifier, device: Device) -> torch.device:
    tensor: Tensor | None = next(purifier.parameters(), None)
    return pick_device(device) if tensor is None else tensor.device


def _prior(purifier: Purifier) -> DiffusionModel | None:
    return next((module for module in purifier.modules() if isinstance(module, DiffusionModel)), None)


def _plan(prior: DiffusionModel | None, picture: Picture, side: int) -> TilePlan:
    multiple = 1 if prior is None else prior.multiple
    size = max(side // multiple, 1) * multiple
    overlap = size // 4 // multiple * multiple
    return plan_tiles(picture.height, picture.width, size=size, overlap=overlap, multiple=multiple)


def _tile_of(purifier: Purifier) -> Callable[[Purifier, Images], Images]:
    """How a tile is purified: as it is, or with mirrored borders up to the one side that its model knows."""
    prior = _prior(purifier)
    if prior is None or not prior.fixed_size:
        return lambda seeded, images: seeded(images)
    side = prior.comfortable
    return lambda seeded, images: crop_padding(seeded(pad_to_multiple(images, side)), *images.shape[-2:])
