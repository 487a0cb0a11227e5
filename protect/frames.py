"""What of a picture may change, and how a change is written into it."""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from imaging.picture import Images, Picture
from imaging.quantize import quantize
from imaging.tiles import Box
from protect.method import ProtectionMethod

Where = Bool[Tensor, "batch_or_1 1 height width"]

_BAND = 256
"""Rows that are rounded at a time, so that a large picture is never a float as a whole twice; whole blocks
of JPEG."""


class NothingToProtectError(ValueError):
    """A mask or transparency that leaves no pixel to change, or a perturbation that rounds to none."""


def check_picture(picture: Picture, eps: float, mask: Where | None) -> None:
    """Raise ValueError if `eps` is less than a level of the file, the mask has another size, or no pixel that
    may change can be seen."""
    check_budget(eps, picture.levels)
    if mask is not None:
        check_mask_size(mask, picture.height, picture.width)
    whole = Box(0, 0, picture.height, picture.width)
    frames = (picture.frame(index) for index in range(picture.frames))
    if not any(allowed_in(frame, mask)(whole).any() for frame in frames):
        raise NothingToProtectError(
            "every pixel that may change is fully transparent; there is nothing to protect"
        )


def check_changed(picture: Picture, protected: Picture) -> None:
    """Raise NothingToProtectError if no pixel differs."""
    if torch.equal(protected.integers, picture.integers):
        raise NothingToProtectError(
            "no pixel changed by a whole level of the file; more steps or a larger step size may help"
        )


def allowed_in(frame: Picture, mask: Where | None) -> Callable[[Box], Where]:
    """Return where a region of the frame may change: inside the mask and not fully transparent."""

    def allowed(box: Box) -> Where:
        visible = frame.region(box).visible_mask > 0
        return visible if mask is None else visible & crop(mask, box)

    return allowed


def round_into(integers: Tensor, frame: Picture, delta: Images, method: ProtectionMethod) -> None:
    """Write the frame plus `delta`, rounded within the method's bound, into its place, a band of rows at a
    time."""
    for top in range(0, frame.height, _BAND):
        box = Box(top, 0, min(top + _BAND, frame.height), frame.width)
        original = frame.region(box).pixels
        change = method.settle(crop(delta, box), original)
        rounded = quantize(original + change, original, method.eps, levels=frame.levels)
        integers[..., box.top : box.bottom, :] = (rounded * frame.levels).round_()[0].to(integers.dtype)


def check_mask_size(mask: Where, height: int, width: int) -> None:
    """Raise ValueError if a mask is not as large as the picture."""
    if tuple(mask.shape[-2:]) != (height, width):
        raise ValueError(
            f"the mask is {mask.shape[-1]} x {mask.shape[-2]} px and the picture {width} x {height} px;"
            " save the mask at the picture's size"
        )


def check_budget(eps: float, levels: int) -> None:
    """Raise ValueError if `eps` is less than a level of the file."""
    if eps * levels + 1e-6 < 1:
        raise ValueError(
            f"eps={eps * levels:g}/{levels} is less than one level of the file, so nothing could change"
        )


def crop(planes: Tensor, box: Box) -> Tensor:
    """Return the part of planes inside a box, as a view."""
    return planes[..., box.top : box.bottom, box.left : box.right]
