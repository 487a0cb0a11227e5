"""What platforms and thieves do to pictures, differentiable, so that a perturbation can be made to last.

Every transform takes images [batch, 3, height, width] in [0, 1] and returns images of the same shape.
Rounding passes gradients straight through; clamping stops them, as it does in the real thing.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from imaging.blocks import dct, from_blocks, inverse_dct, to_blocks
from imaging.picture import Images
from imaging.tiles import Planes, crop_padding

Subsampling = Literal["4:4:4", "4:2:0"]
Quality = int | float | Float[Tensor, " batch"]
Resized = Float[Tensor, "batch channels new_height new_width"]

# The example tables of the JPEG standard (ITU-T T.81, K.1 and K.2), which libjpeg scales by the quality.
_LUMA = """
    16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""
_CHROMA = """
    17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""
# Colours of gray pixels and mean values of blocks often lie exactly between two integers. libjpeg then rounds
# colours down and coefficients away from zero; floats need this much room to agree on what a tie is.
_TIE = 1e-4
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_FROM_YCC = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def jpeg(images: Images, quality: Quality, *, subsampling: Subsampling = "4:2:0") -> Images:
    """Encode and decode as libjpeg does, with gradients straight through every rounding.

    Forward values equal Pillow's `save(quality=…, subsampling=…)` and re-reading up to a few levels where a
    coefficient lies on a rounding boundary. Gradients use the straight-through estimator (Bengio et al.,
    2013, arXiv:1308.3432).

    Args:
        images: in [0, 1].
        quality: libjpeg's 1 to 100; one number, or one for each image [batch].
        subsampling: "4:2:0", which most encoders default to, halves both sides of the colour planes.

    Raises:
        ValueError: the quality is out of range, or the subsampling is another one.
    """
    if subsampling not in ("4:4:4", "4:2:0"):
        raise ValueError(f"subsampling must be '4:4:4' or '4:2:0', got {subsampling!r}")
    luma_table, chroma_table = quantisation_steps(quality, images)
    ycc = _mix(_round(images * 255), _TO_YCC) + _chroma_offset(images)
    ycc = _straight_through(ycc, (ycc - 0.5 - _TIE).ceil())
    luma, chroma = ycc[:, :1], ycc[:, 1:]
    luma = _code_blocks(luma, luma_table)
    if subsampling == "4:2:0":
        halved = _code_blocks(_halve(chroma), chroma_table)
        chroma = crop_padding(_double(halved), *images.shape[-2:])
    else:
        chroma = _code_blocks(chroma, chroma_table)
    decoded = _mix(torch.cat([luma, chroma], 1) - _chroma_offset(images), _FROM_YCC)
    return _round(decoded).clamp(0, 255) / 255


def _straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    return values + (rounded - values).detach()


def _round(values: Tensor) -> Tensor:
    return _straight_through(values, values.round())


def _round_away(values: Tensor) -> Tensor:
    return _straight_through(values, values.sign() * (values.abs() + 0.5 + _TIE).floor())


def _mix(images: Images, matrix: tuple[tuple[float, ...], ...]) -> Images:
    return torch.einsum("oc,nchw->nohw", images.new_tensor(matrix), images)


def _chroma_offset(images: Images) -> Tensor:
    return images.new_tensor((0.0, 128.0, 128.0)).view(1, 3, 1, 1)


def quantisation_steps(quality: Quality, images: Images) -> tuple[Tensor, Tensor]:
    """Return libjpeg's steps for luma and chroma, in 1/255, by frequency: [batch or 1, 1, 1, 1, 8, 8].

    `quality` is as in `jpeg`; place and dtype are those of `images`.
    """
    quality = torch.as_tensor(quality, dtype=images.dtype, device=images.device).view(-1, 1, 1, 1, 1, 1)
    if not bool(((quality >= 1) & (quality <= 100)).all()):
        raise ValueError("JPEG quality must lie between 1 and 100")
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    tables = [
        images.new_tensor([int(each) for each in table.split()]).view(8, 8) for table in (_LUMA, _CHROMA)
    ]
    luma, chroma = ((table * percent + 50).div(100).floor().clamp(1, 255) for table in tables)
    return luma, chroma


def _code_blocks(planes: Planes, table: Tensor) -> Planes:
    """Transform, quantise and restore 8 x 8 blocks of planes with values in [0, 255]."""
    height, width = planes.shape[-2:]
    eighths = _round(dct(to_blocks(planes - 128)) * 8) / 8  # libjpeg's integer transform resolves no more
    restored = inverse_dct(_round_away(eighths / table) * table)
    return from_blocks(_round(restored + 128).clamp(0, 255), height, width)


def _halve(planes: Planes) -> Resized:
    height, width = planes.shape[-2:]
    padded = F.pad(planes, (0, width % 2, 0, height % 2), mode="replicate")
    mean = F.avg_pool2d(padded, 2)
    # libjpeg rounds quarters down and up in alternating columns: it adds 1/4 and 1/2 before it truncates.
    bias = torch.arange(mean.shape[-1], device=planes.device) % 2 * 0.25 + 0.25
    return _straight_through(mean, (mean + bias).floor())


def _double(planes: Planes) -> Resized:
    """Interpolate with weights 3/4 and 1/4, libjpeg's "fancy upsampling"."""
    rows = _interleave(planes, 2) * 4  # sums of weights 3 and 1, as integers
    columns = _interleave(rows, 3) * 4
    bias = torch.tensor([8.0, 7.0], device=planes.device).repeat(planes.shape[-1])
    return _straight_through(columns / 16, ((columns + bias) / 16).floor())


def _interleave(planes: Planes, dim: int) -> Resized:
    length = planes.shape[dim]
    before = torch.cat([planes.narrow(dim, 0, 1), planes.narrow(dim, 0, length - 1)], dim)
    after = torch.cat([planes.narrow(dim, 1, length - 1), planes.narrow(dim, length - 1, 1)], dim)
    nearer = 0.75 * planes
    return torch.stack([nearer + 0.25 * before, nearer + 0.25 * after], dim + 1).flatten(dim, dim + 1)


def resize(images: Images, scale: float) -> Images:
    """Scale both sides by `scale` and back again, antialiased bicubic, clamped to [0, 1].

    Raises:
        ValueError: the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"the scale must be positive, got {scale}")
    height, width = images.shape[-2:]
    scaled = _interpolate(images, max(1, round(height * scale)), max(1, round(width * scale)))
    return _interpolate(scaled.clamp(0, 1), height, width).clamp(0, 1)


def _interpolate(images: Images, height: int, width: int) -> Resized:
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True)


def gaussian_blur(images: Planes, sigma: float, kernel: int | None = None) -> Planes:
    """Blur by a Gaussian of `sigma` pixels, with the border mirrored.

    Args:
        images: any planes, at least half a kernel high and wide.
        sigma: standard deviation in pixels.
        kernel: odd number of taps; three sigma on each side when left out.

    Raises:
        ValueError: sigma is not positive, the kernel is not odd, or it reaches over the whole image.
    """
    kernel = 2 * math.ceil(3 * sigma) + 1 if kernel is None else kernel
    if not sigma > 0 or kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"sigma must be positive and the kernel odd, got {sigma} and {kernel}")
    reach = kernel // 2
    if reach >= min(images.shape[-2:]):
        raise ValueError(
            f"a blur that reaches {reach} px is too wide for {images.shape[-1]} x {images.shape[-2]} px"
        )
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    return blur_valid(padded, gaussian_taps(sigma, kernel).to(images))


def gaussian_taps(sigma: float, kernel: int) -> Float[Tensor, " kernel"]:
    """Return the weights of a sampled Gaussian, which sum to one."""
    offsets = torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return (weights / weights.sum()).float()


def blur_valid(planes: Planes, taps: Float[Tensor, " kernel"]) -> Resized:
    """Convolve every channel with the taps along both axes, without padding: a side loses kernel - 1."""
    channels = planes.shape[1]
    weight = taps.expand(channels, 1, 1, -1)
    horizontal = F.conv2d(planes, weight, groups=channels)
    return F.conv2d(horizontal, weight.transpose(2, 3), groups=channels)


def gaussian_noise(images: Images, std: float, *, generator: torch.Generator | None = None) -> Images:
    """Add Gaussian noise of standard deviation `std` in [0, 1] units and clamp."""
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return (images + std * noise).clamp(0, 1)


def crop_and_resize(images: Images, fraction: float, *, generator: torch.Generator | None = None) -> Images:
    """Cut away `fraction` of both sides, at a random place in each image, and enlarge to the old size.

    Raises:
        ValueError: the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the fraction to cut away must lie in [0, 1), got {fraction}")
    height, width = images.shape[-2:]
    kept_height, kept_width = max(1, round(height * (1 - fraction))), max(1, round(width * (1 - fraction)))
    places = torch.rand(len(images), 2, generator=generator, device=generator.device if generator else "cpu")
    tops = (places[:, 0] * (height - kept_height + 1)).long().tolist()
    lefts = (places[:, 1] * (width - kept_width + 1)).long().tolist()
    crops = [
        image[:, top : top + kept_height, left : left + kept_width]
        for image, top, left in zip(images, tops, lefts, strict=True)
    ]
    return _interpolate(torch.stack(crops), height, width).clamp(0, 1)


def quantize_bits(images: Images, bits: int) -> Images:
    """Round to 2^bits levels per channel, with gradients straight through.

    Raises:
        ValueError: the number of bits is not from 1 to 16.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"one to sixteen bits per channel can be kept, got {bits}")
    return _round(images * (2**bits - 1)) / (2**bits - 1)
