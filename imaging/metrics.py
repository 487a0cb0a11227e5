"""How far two images are apart and how much of a perturbation lasts; one number per image, shape [batch]."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from imaging.picture import Images
from imaging.transforms import blur_valid, gaussian_taps

Scores = Float[Tensor, " batch"]

_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 for a range L of 1
_STRIP_ROWS = 64  # few enough to stay in the processor's cache


class Survival(NamedTuple):
    """What a transform T leaves of a perturbation: delta' = T(original + delta) - T(original); each [batch].

    energy: |delta'|^2 / |delta|^2. It exceeds 1 when the transform adds errors of its own.
    cosine: between delta' and delta.
    projection: <delta', delta> / |delta|^2, the share of delta that is still there; 1 for the identity.
    All are NaN where delta is zero, because nothing could survive.
    """

    energy: Scores
    cosine: Scores
    projection: Scores


class Spectrum(NamedTuple):
    """Shares of a perturbation's energy in low and high frequencies; [batch], NaN where it is zero."""

    low: Scores
    high: Scores


def psnr(images: Images, reference: Images) -> Scores:
    """Return 10 log10(1 / mean squared error) in dB for values in [0, 1]; infinity for equal images."""
    _check_shapes(images, reference)
    return -10 * (images - reference).square().flatten(1).mean(1).log10()


def ssim(images: Images, reference: Images) -> Scores:
    """Return the structural similarity (Wang et al., 2004, IEEE TIP), averaged over pixels and channels.

    Gaussian window of 11 x 11 and sigma 1.5, K1 = 0.01, K2 = 0.03, range 1, population variances, without the
    5 pixels at each border that have no full window. Large images are worked through in strips.

    Raises:
        ValueError: shapes differ or a side is shorter than 11 pixels.
    """
    _check_shapes(images, reference)
    height, width = images.shape[-2:]
    if min(height, width) < _SSIM_WINDOW:
        raise ValueError(f"SSIM needs sides of at least {_SSIM_WINDOW} pixels, got {height} x {width}")
    margin = _SSIM_WINDOW - 1
    strips = [slice(top, top + _STRIP_ROWS + margin) for top in range(0, height - margin, _STRIP_ROWS)]
    sums = [_ssim_map(images[:, :, rows], reference[:, :, rows]).flatten(1).sum(1) for rows in strips]
    return torch.stack(sums).sum(0) / (3 * (height - margin) * (width - margin))


def _ssim_map(x: Images, y: Images) -> Tensor:
    taps = gaussian_taps(_SSIM_SIGMA, _SSIM_WINDOW).to(x)
    mean_x, mean_y = blur_valid(x, taps), blur_valid(y, taps)
    variance_x = blur_valid(x * x, taps) - mean_x * mean_x
    variance_y = blur_valid(y * y, taps) - mean_y * mean_y
    covariance = blur_valid(x * y, taps) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x * mean_x + mean_y * mean_y + _SSIM_C1)
    return luminance * (2 * covariance + _SSIM_C2) / (variance_x + variance_y + _SSIM_C2)


def linf(images: Images, reference: Images) -> Scores:
    """Return the largest change of any value, in units of 1/255."""
    _check_shapes(images, reference)
    return (images - reference).abs().flatten(1).amax(1) * 255


def l2(images: Images, reference: Images) -> Scores:
    """Return the Euclidean length of the change, for values in [0, 1]."""
    _check_shapes(images, reference)
    return (images - reference).flatten(1).norm(dim=1)


def changed_share(images: Images, reference: Images) -> Scores:
    """Return the share of pixels of which any channel moved by half a level of 8 bits or more."""
    _check_shapes(images, reference)
    moved = (images - reference).abs().amax(1) >= 0.5 / 255
    return moved.flatten(1).float().mean(1)


def survival(original: Images, protected: Images, transform: Callable[[Images], Images]) -> Survival:
    """Measure what remains of the perturbation behind a transform, without any model.

    It is a warning light and no proof: perturbations of which half was left have been reported useless.
    A transform that draws random numbers must draw the same ones in both of its calls.

    Args:
        original: clean images.
        protected: the same images with the perturbation.
        transform: any function of images that keeps their shape.
    """
    _check_shapes(original, protected)
    delta = (protected - original).flatten(1)
    left = (transform(protected) - transform(original)).flatten(1)
    energy, overlap = delta.square().sum(1), (left * delta).sum(1)
    cosine = overlap / (left.norm(dim=1) * delta.norm(dim=1))
    return Survival(left.square().sum(1) / energy, cosine, overlap / energy)


def spectral_split(original: Images, protected: Images) -> Spectrum:
    """Return which shares of the perturbation's energy lie below 1/8 and above 1/4 of the sampling frequency.

    The channel mean is transformed; frequencies are radial, in cycles per pixel.
    """
    _check_shapes(original, protected)
    delta = (protected - original).mean(1)
    power = torch.fft.fft2(delta).abs().square()
    rows = torch.fft.fftfreq(delta.shape[-2], device=delta.device)
    columns = torch.fft.fftfreq(delta.shape[-1], device=delta.device)
    radius = torch.hypot(rows[:, None], columns[None, :])
    total = power.flatten(1).sum(1)
    low, high = ((power * band).flatten(1).sum(1) / total for band in (radius < 1 / 8, radius > 1 / 4))
    return Spectrum(low, high)


def _check_shapes(images: Images, reference: Images) -> None:
    if images.shape != reference.shape:
        raise ValueError(
            f"two images to compare have equal shapes, got {tuple(images.shape)} and {tuple(reference.shape)}"
        )
