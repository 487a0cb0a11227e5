"""Several pictures of one subject, protected together: the function behind every front end for sets."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from attacks.ball import Images, Losses
from diffusion.choice import Device, Precision, network_precision
from diffusion.model import DiffusionModel
from imaging.io import read
from imaging.picture import Picture
from imaging.tiles import Box
from protect.collective import CollectiveMethod, one_picture
from protect.ensemble import Models
from protect.frames import Where, allowed_in, check_changed, check_picture, round_into
from protect.method import ProtectionMethod
from protect.methods import create
from protect.picture import MaskLike, Progress, read_mask, surrogates_for
from protect.surrogate import Names


def protect_images(
    images: Sequence[str | os.PathLike[str] | Picture],
    method: str | ProtectionMethod = "aspl",
    model: Names | Models = "auto",
    *,
    masks: Sequence[MaskLike | None] | None = None,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    callback: Progress | None = None,
    **settings: Any,
) -> list[Picture]:
    """Perturb pictures of one subject, jointly, so that a diffusion model cannot learn it from them.

    >>> protected = protect_images(["a.jpg", "b.jpg", "c.jpg"], "aspl")        # doctest: +SKIP

    Pictures may differ in size. All of them are in memory at full size, at about ten bytes per value.

    Args:
        images: paths or pictures of the subject, two or more; each frame of an animation counts as one.
        method: a collective one by name, or a method such as `ASPL(rounds=10)`.
        model: one, as for `protect.protect_image`.
        masks: for each picture as `mask` of `protect_image`, or None.
        seed: decides every draw.
        device: as for `protect_image`.
        precision: as for `protect_image`.
        callback: called after each step with the share of the work that is done, in (0, 1]; raise from it to
            stop.
        settings: fields of the method.

    Returns:
        The pictures in their order, rounded to each file's levels within `eps`, as `protect_image` does.

    Raises:
        ValueError: fewer than two pictures, a method that takes pictures one by one, not one mask for each
            picture; and whatever `protect_image` raises.
    """
    method = create(method, **settings) if isinstance(method, str) else replace(method, **settings)
    if not isinstance(method, CollectiveMethod):
        raise ValueError(f"{type(method).__name__} takes pictures one by one: call protect_image for each")
    if masks is not None and len(masks) != len(images):
        raise ValueError(f"there is one mask for each picture, or None; got {len(masks)} for {len(images)}")
    pictures = [image if isinstance(image, Picture) else read(image) for image in images]
    where = [None if mask is None else read_mask(mask) for mask in masks or [None] * len(images)]
    for picture, mask in zip(pictures, where, strict=True):
        check_picture(picture, method.eps, mask)
    if sum(picture.frames for picture in pictures) < 2:
        raise ValueError(one_picture(method))
    (surrogate,) = surrogates_for(method, model, device=device, precision=precision)
    made = jointly(pictures, method, surrogate, where, seed=seed, precision=precision, callback=callback)
    for picture, protected in zip(pictures, made, strict=True):
        check_changed(picture, protected)
    return made


def jointly(
    pictures: Sequence[Picture],
    method: CollectiveMethod,
    model: DiffusionModel,
    masks: Sequence[Where | None],
    *,
    seed: int,
    precision: Precision,
    callback: Progress | None,
) -> list[Picture]:
    """Return what a collective method makes of pictures that it can work on, rounded within the bound."""
    frames = [(n, picture.frame(i)) for n, picture in enumerate(pictures) for i in range(picture.frames)]
    originals = [frame.pixels for _, frame in frames]
    done = method.protect_set(
        originals,
        model,
        masks=[_everywhere(frame, masks[number]) for number, frame in frames],
        generator=torch.Generator().manual_seed(seed),
        precision=network_precision(precision, model.device),
        callback=None if callback is None else _as_steps(callback, method.steps),
    )
    integers = [picture.integers.clone() for picture in pictures]
    places = [integers[n][i] for n, picture in enumerate(pictures) for i in range(picture.frames)]
    for (_, frame), place, original, perturbed in zip(frames, places, originals, done, strict=True):
        round_into(place, frame, perturbed - original, method)
    return [replace(picture, integers=new) for picture, new in zip(pictures, integers, strict=True)]


def _everywhere(frame: Picture, mask: Where | None) -> torch.Tensor | None:
    """Where a whole frame may change; None stands for everywhere."""
    if mask is None and frame.alpha is None:
        return None
    return allowed_in(frame, mask)(Box(0, 0, frame.height, frame.width)).float()


def _as_steps(callback: Progress, steps: int) -> Callable[[int, Images, Losses], None]:
    def told(step: int, perturbed: Images, losses: Losses) -> None:
        callback(min(1.0, (step + 1) / steps))

    return told
