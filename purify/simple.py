"""Purifiers without a model: what an editor or a platform does to a picture anyway."""

from collections.abc import Callable

import torch
from torch.nn.functional import interpolate, pad, unfold

from imaging.transforms import Subsampling, gaussian_blur, jpeg, quantize_bits, resize
from purify.purifier import Draw, Images, Move, Purifier


class Transform(Purifier):
    """A deterministic transform of `imaging.transforms` as a purifier."""

    def __init__(self, transform: Callable[[Images], Images]) -> None:
        super().__init__()
        self.transform = transform

    def moves(self) -> list[Move]:
        return [self._transformed]

    def _transformed(self, state: Images, images: Images, draw: Draw) -> Images:
        return self.transform(state)


class Jpeg(Transform):
    """Save as JPEG and read again; the gradient passes straight through roundings."""

    def __init__(self, quality: int = 75, *, subsampling: Subsampling = "4:2:0") -> None:
        super().__init__(lambda images: jpeg(images, quality, subsampling=subsampling))


class Resize(Transform):
    """Shrink both sides by `scale` and enlarge again."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__(lambda images: resize(images, scale))


class Blur(Transform):
    """Blur by a Gaussian of `sigma` pixels."""

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__(lambda images: gaussian_blur(images, sigma))


class Quantize(Transform):
    """Round to `bits` per channel (Xu et al., 2018, NDSS); the gradient passes straight through."""

    def __init__(self, bits: int = 4) -> None:
        super().__init__(lambda images: quantize_bits(images, bits))


class Crop(Transform):
    """Cut `percent` of both sides away, half of it at each border, and enlarge to the old size.

    What it returns shows things elsewhere, so compare it with a picture that was cropped, too.
    """

    def __init__(self, percent: float = 10) -> None:
        if not 0 <= percent < 100:
            raise ValueError(f"percent to cut away lies in [0, 100); got {percent:g}")
        super().__init__(lambda images: cropped(images, percent / 100))


class Noise(Purifier):
    """Add Gaussian noise of standard deviation `std`, for a range of 1."""

    def __init__(self, std: float = 0.05) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(f"std must be above 0; got {std:g}")
        self.std = std

    def moves(self) -> list[Move]:
        return [self._noised]

    def _noised(self, state: Images, images: Images, draw: Draw) -> Images:
        return (state + self.std * draw(state)).clamp(0, 1)


class AdverseCleaner(Purifier):
    """Repeated bilateral filtering, then guided filtering by the input (Zhang, 2023, AdverseCleaner).

    Levels of colour are of 255: the bilateral filter's `colour`, and `regularisation` of the guided one.
    """

    def __init__(
        self, *, bilateral: int = 64, guided: int = 4, colour: float = 8.0, regularisation: float = 16.0
    ) -> None:
        super().__init__()
        self.bilateral, self.guided = bilateral, guided
        self.colour, self.regularisation = colour / 255, regularisation / 255**2

    def moves(self) -> list[Move]:
        smooth: list[Move] = [self._smooth] * self.bilateral
        return [*smooth, *[self._follow] * self.guided]

    def _smooth(self, state: Images, images: Images, draw: Draw) -> Images:
        return bilateral_filter(state, reach=2, colour=self.colour, space=8.0)

    def _follow(self, state: Images, images: Images, draw: Draw) -> Images:
        return guided_filter(state, images, reach=4, regularisation=self.regularisation).clamp(0, 1)


def cropped(images: Images, fraction: float) -> Images:
    """Cut `fraction` of both sides away around the centre and enlarge to the old size, bicubically."""
    height, width = images.shape[-2:]
    kept_height, kept_width = (max(1, round(side * (1 - fraction))) for side in (height, width))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    centre = images[..., top : top + kept_height, left : left + kept_width]
    return interpolate(centre, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def bilateral_filter(images: Images, *, reach: int, colour: float, space: float) -> Images:
    """Average neighbours within `reach` pixels that lie near in place and in colour.

    See Tomasi and Manduchi (1998, ICCV). Colour distance is the sum over channels of absolute differences
    and the window is a disc, as in OpenCV's filter.
    """
    batch, channels, height, width = images.shape
    side = 2 * reach + 1
    windows = unfold(pad(images, (reach,) * 4, mode="reflect"), side)
    windows = windows.view(batch, channels, side * side, height, width)
    distance = (windows - images[:, :, None]).abs().sum(1, keepdim=True)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    away = torch.hypot(offsets[:, None], offsets[None]).flatten()
    nearness = torch.where(away <= reach, torch.exp(-(away**2) / (2 * space**2)), 0).view(1, 1, -1, 1, 1)
    weights = nearness * torch.exp(-(distance**2) / (2 * colour**2))
    return (weights * windows).sum(2) / weights.sum(2)


def guided_filter(images: Images, guide: Images, *, reach: int, regularisation: float) -> Images:
    """Smooth images so that edges of the guide stay (He et al., 2013, TPAMI), channel by channel."""

    def box(planes: Images) -> Images:
        kernel = 2 * reach + 1
        return torch.nn.functional.avg_pool2d(pad(planes, (reach,) * 4, mode="reflect"), kernel, stride=1)

    mean, guide_mean = box(images), box(guide)
    covariance = box(images * guide) - mean * guide_mean
    variance = box(guide * guide) - guide_mean**2
    slope = covariance / (variance + regularisation)
    return box(slope) * guide + box(mean - slope * guide_mean)
