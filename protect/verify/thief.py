"""A thief at work on a picture and on its protected versions: equal prompt, noise and counter-measures.

What protection is worth is how far his result is from the one that the original gives by the same road:
edit(counter(protected)) against edit(counter(original)). How far he stays behind a thief who has the original
itself is another pair, edit(counter(protected)) against edit(original), which counts what the counter-measure
spoils by itself as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.model import DiffusionModel
from imaging import metrics
from imaging.picture import Images
from imaging.quantize import quantize
from protect.threats.threat import Mask, Threat

Scores = Float[Tensor, " batch"]
Distance = Callable[[Images, Images], Scores]
Purify = Callable[[Images], Images]


@dataclass(frozen=True, eq=False)
class Thief:
    """A threat with the model that carries it out and the seeds of its noise."""

    threat: Threat
    model: DiffusionModel
    seeds: Sequence[int]
    precision: torch.dtype = torch.float32
    """Of the networks, under autocast."""

    def __call__(self, image: Images) -> Images:
        """Return what becomes of one image, for each seed in turn as many images."""
        halved = self.precision != torch.float32
        with torch.autocast(self.model.device.type, self.precision, enabled=halved):
            return self.threat(self.model, image, seed=self.seeds).float()


@dataclass(frozen=True)
class CounterMeasure:
    """What is done to a picture before it is used."""

    purify: Purify
    aligned: bool = True
    """Whether things stay where they are, so that results can be compared with those of the original."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a thief gets by a counter-measure from a version of a picture, and from the picture; by seed."""

    thief: str
    counter_measure: str
    version: str
    pictures: tuple[Images, Images]
    """The original and the version, after the counter-measure."""
    made: Images
    """From the version, after the counter-measure."""
    original: Images
    """From the original, after the same."""
    untouched: Images | None
    """From the original as it is; None where a comparison has no meaning."""
    region: Mask | None = field(repr=False)
    """1 where they are compared; None for everywhere."""


@dataclass(frozen=True)
class Change:
    """How far two results are apart."""

    damage: float
    """1 - SSIM, 0 where they are equal."""
    psnr: float
    """In dB."""
    lpips: float | None = None


def outcomes(
    thieves: Mapping[str, Thief],
    counter_measures: Mapping[str, CounterMeasure],
    original: Images,
    versions: Mapping[str, Images],
    *,
    wanted: Callable[[str, str, str], bool] = lambda thief, counter_measure, version: True,
) -> Iterator[Comparison]:
    """Let each thief, behind each counter-measure, use the original and each version of it.

    Each version is purified once, and what becomes of the original is made once.

    Args:
        thieves: by name.
        counter_measures: by name.
        original: one image [1, 3, height, width] in [0, 1].
        versions: its protected versions and controls, by name, of the same shape.
        wanted: says, by the three names, which comparisons to make.
    """
    plain: dict[str, Images] = {}
    for name, counter in counter_measures.items():
        purified: dict[str, Images] = {}
        for role, thief in thieves.items():
            asked = [version for version in versions if wanted(role, name, version)]
            if not asked:
                continue
            if counter.aligned and role not in plain:
                plain[role] = thief(original)
            start = _once(purified, "", original, counter)
            before = plain[role] if start is original else thief(start)
            for version in asked:
                pictures = (start, _once(purified, version, versions[version], counter))
                untouched = plain[role] if counter.aligned else None
                made = thief(pictures[1])
                yield Comparison(role, name, version, pictures, made, before, untouched, thief.threat.region)


def _once(kept: dict[str, Images], name: str, image: Images, counter: CounterMeasure) -> Images:
    if name not in kept:
        with torch.no_grad():
            kept[name] = counter.purify(image)
    return kept[name]


def change(
    made: Images, reference: Images, *, region: Mask | None = None, lpips: Distance | None = None
) -> list[Change]:
    """Measure how far images are from others, one by one.

    With a `region` they are compared where it is 1: the rest is set equal, and the figures are those of an
    average over the region.
    """
    share = 1.0
    if region is not None:
        inside = region.to(reference) >= 0.5
        share = inside.float().mean().item()
        made = torch.where(inside, made, reference)
    damage = (1 - metrics.ssim(made, reference)) / share
    psnr = metrics.psnr(made, reference) + 10 * torch.tensor(share).log10()
    apart: Sequence[float | None] = [None] * len(made)
    if lpips is not None:
        with torch.no_grad():
            apart = (lpips(made, reference) / share).tolist()
    return [Change(*row) for row in zip(damage.tolist(), psnr.tolist(), apart, strict=True)]


def control(original: Images, protected: Images, *, levels: int = 255, seed: int = 0) -> Images:
    """Return `original` with noise of the protection's budget: its largest change, with a random sign.

    It is rounded to the file's levels as protected pictures are, and reaches as far: pixels that protection
    left alone stay as they are. Its energy is never less than the protection's.
    """
    eps = (protected - original).abs().amax().item()
    signs = torch.rand(original.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    noisy = original + torch.where(signs, eps, -eps).to(original)
    touched = (protected != original).any(1, keepdim=True)
    return quantize(torch.where(touched, noisy, original).clamp(0, 1), original, eps + 1e-6, levels=levels)
