"""What is in the written file, what ordinary handling leaves of it, and what it does to the model's edits."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.model import DiffusionModel
from imaging import metrics, transforms
from imaging.picture import Images, Picture
from imaging.tiles import Box, crop_padding, pad_to_multiple
from protect.threats.img2img import Img2Img

Scores = Float[Tensor, " batch"]

HANDLING: dict[str, Callable[[Images], Images]] = {
    "jpeg75": lambda images: transforms.jpeg(images, 75),
    "half_size": lambda images: transforms.resize(images, 0.5),
    "blur": lambda images: transforms.gaussian_blur(images, 1.0),
}
"""What happens to pictures on the way: JPEG as platforms save it, half the size and back, a slight blur."""

_WINDOW = 1024
_SSIM_MARGIN = 10


@dataclass(frozen=True)
class Measurement:
    """A written picture against its original, over all frames."""

    linf: float
    """Largest change of any value, in 1/255."""
    psnr: float
    """In dB; infinite when nothing changed."""
    ssim: float
    changed: float
    """Share of pixels that changed by half a level of 8 bits or more."""
    survival: dict[str, float]
    """Share of the perturbation that is left (its projection): in the `file`, and after each `HANDLING`."""


class EditChange(NamedTuple):
    """How far the surrogate's edits of the protected images are from those of the originals; each [batch]."""

    dissimilarity: Scores
    """1 - SSIM: 0 when protection changes nothing for the thief."""
    psnr: Scores
    """In dB; lower is better for the owner."""


class Edited(NamedTuple):
    """What the surrogate makes of the originals and of the protected images."""

    of_original: Images
    of_protected: Images


@dataclass
class _Sums:
    largest: float = 0.0
    squares: float = 0.0
    ssim: float = 0.0
    changed: float = 0.0
    intended: float = 0.0
    """Energy of the perturbation as it was made."""
    overlaps: dict[str, float] = field(default_factory=dict)


def measure(original: Picture, written: Picture, *, intended: Picture | None = None) -> Measurement:
    """Compare a picture that was read back with its original, window by window in bounded memory.

    Args:
        original: before protection.
        written: the decoded output.
        intended: what was given to the encoder, to say how much of it a lossy format kept; `written` itself
            by default.

    Raises:
        ValueError: frames or sides of the pictures differ.
    """
    if original.integers.shape != written.integers.shape:
        came, expected = (f"{p.frames} x {p.width} x {p.height}" for p in (written, original))
        raise ValueError(f"the written picture has {came} frames x width x height; expected {expected}")
    sums = _Sums()
    for index in range(original.frames):
        frames = [picture.frame(index) for picture in (original, written, intended or written)]
        for core, wide in _windows(original.height, original.width):
            _add(sums, *(frame.region(core).pixels for frame in frames))
            _add_ssim(sums, *(frame.region(wide).pixels for frame in frames[:2]))
    pixels = original.frames * original.height * original.width
    windows = original.frames * (original.height - _SSIM_MARGIN) * (original.width - _SSIM_MARGIN)
    return Measurement(
        linf=sums.largest,
        psnr=-10 * math.log10(sums.squares / (3 * pixels)) if sums.squares else math.inf,
        ssim=sums.ssim / windows,
        changed=sums.changed / pixels,
        survival={name: _share(overlap, sums.intended) for name, overlap in sums.overlaps.items()},
    )


def edits(
    model: DiffusionModel,
    original: Images,
    protected: Images,
    *,
    prompt: str = "a photo",
    strength: float = 0.5,
    steps: int = 20,
    seed: int = 0,
) -> Edited:
    """Let the surrogate edit both with the same noise, see `Img2Img`, without guidance.

    A model that cannot (see `can_edit`) reconstructs them instead: encode and decode.

    Args:
        model: the surrogate.
        original: float [batch, 3, height, width] in [0,1], of any size that the model can hold at once.
        protected: the same with the perturbation.
        prompt: what the edit asks for.
        strength: share of the noise schedule that the edit runs through, in (0, 1].
        steps: of the sampler.
        seed: of the noise, one draw for every image.
    """
    if not can_edit(model):
        return Edited(*(_reconstructed(model, images) for images in (original, protected)))
    threat = Img2Img(prompt=prompt, steps=steps, guidance=1.0, strength=strength)
    return Edited(*(threat(model, images, seed=seed) for images in (original, protected)))


def can_edit(model: DiffusionModel) -> bool:
    """Return whether a model edits a picture by itself: no autoencoder, nor one that wants a mask."""
    return model.has_denoiser and Img2Img().takes(model)


def edit_change(
    model: DiffusionModel,
    original: Images,
    protected: Images,
    *,
    prompt: str = "a photo",
    strength: float = 0.5,
    steps: int = 20,
    seeds: Sequence[int] = (1000,),
) -> EditChange:
    """Measure how much protection changes what the surrogate makes of each picture, averaged over `seeds`.

    The seeds should not be the one that the protection was made with, whose noise it has met. Arguments as
    for `edits`; returns scores of shape [batch].
    """
    if not seeds:
        raise ValueError("edit_change needs at least one seed")
    dissimilarity, psnr = [], []
    for seed in seeds:
        pair = edits(model, original, protected, prompt=prompt, strength=strength, steps=steps, seed=seed)
        dissimilarity.append(1 - metrics.ssim(pair.of_protected, pair.of_original))
        psnr.append(metrics.psnr(pair.of_protected, pair.of_original))
    return EditChange(torch.stack(dissimilarity).mean(0), torch.stack(psnr).mean(0))


@torch.no_grad()
def _reconstructed(model: DiffusionModel, images: Images) -> Images:
    height, width = images.shape[-2:]
    padded = pad_to_multiple(images.to(model.device), model.multiple)
    return crop_padding(model.decode(model.encode(padded)), height, width).to(images)


def _windows(height: int, width: int) -> Iterator[tuple[Box, Box]]:
    """Boxes that cover the picture once, each with the wider box whose SSIM map is its share of the whole."""
    rows, columns = _edges(height), _edges(width)
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            wide = Box(top, left, min(bottom + _SSIM_MARGIN, height), min(right + _SSIM_MARGIN, width))
            yield Box(top, left, bottom, right), wide


def _edges(length: int) -> list[int]:
    # Near-equal parts that start on multiples of 16 keep the blocks of JPEG where they would be in the whole
    # picture.
    count = math.ceil(length / _WINDOW)
    return [round(index * length / count / 16) * 16 for index in range(count)] + [length]


def _add(sums: _Sums, original: Images, written: Images, intended: Images) -> None:
    delta, wanted = written - original, intended - original
    sums.largest = max(sums.largest, metrics.linf(written, original).item())
    sums.squares += delta.double().square().sum().item()
    sums.changed += metrics.changed_share(written, original).item() * original[0, 0].numel()
    sums.intended += wanted.double().square().sum().item()
    left = {"file": delta}
    for name, transform in HANDLING.items():
        left[name] = transform(written) - transform(original)
    for name, change in left.items():
        sums.overlaps[name] = sums.overlaps.get(name, 0.0) + (change.double() * wanted).sum().item()


def _add_ssim(sums: _Sums, original: Images, written: Images) -> None:
    height, width = (side - _SSIM_MARGIN for side in original.shape[-2:])
    sums.ssim += metrics.ssim(written, original).item() * height * width


def _share(overlap: float, energy: float) -> float:
    return overlap / energy if energy else math.nan
