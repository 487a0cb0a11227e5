"""Pictures that are there twice: the same pixels, or the same picture saved, scaled or retouched again."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn.functional import interpolate

from imaging.picture import Images

NEAR = 8
"""Perceptual hashes that differ in at most this many of their 64 bits are compared further."""
ALIKE = 8.0
"""Thumbnails that differ by at most this much of 255, as root mean square, are of the same picture."""
# Copies at JPEG 40, half size or one and a half times lie within 8 bits and 6.4 (12 bits, of pictures that
# are nearly noise); unrelated photographs, CIFAR-10's too, differ by 12 bits and 16 at the least.

_THUMBNAIL = 8
_ROWS = 1024
Thumbnail = UInt8[np.ndarray, "3 8 8"]


@dataclass(frozen=True)
class Trace:
    """What a picture is recognised by."""

    exact: str
    """Hash of its pixels."""
    perceptual: int
    """64 bits: which of its lowest frequencies lie above their median."""
    thumbnail: Thumbnail


def perceptual_hash(images: Images) -> int:
    """Return 64 bits that rescaling, recompression and small retouches hardly change, of one image.

    The gray picture at 32 x 32 pixels is transformed (DCT-II), and each of its lowest 8 x 8 frequencies
    compared with their median (Zauner, 2010).
    """
    gray = images.mean(1, keepdim=True)
    small = interpolate(gray, size=[32, 32], mode="bilinear", antialias=True)[0, 0].double()
    frequency = torch.arange(8, dtype=torch.float64)[:, None]
    position = torch.arange(32, dtype=torch.float64)[None]
    cosines = torch.cos((2 * position + 1) * frequency * torch.pi / 64)
    low = (cosines @ small @ cosines.T).flatten()
    bits = (low > low[1:].median()).tolist()
    return sum(1 << index for index, bit in enumerate(bits) if bit)


def thumbnail(images: Images) -> Thumbnail:
    """Return the mean colours of 8 x 8 parts of one image, as bytes."""
    small = interpolate(images, size=[_THUMBNAIL] * 2, mode="bilinear", antialias=True)[0]
    return (small * 255).round().clamp(0, 255).to(torch.uint8).numpy()


@dataclass(frozen=True)
class Duplicates:
    """Pairs of pictures by their numbers, the smaller first."""

    exact: list[tuple[int, int]]
    near: list[tuple[int, int]]
    """Pairs that look the same and are not the same pixels."""


def find_duplicates(traces: Sequence[Trace]) -> Duplicates:
    """Return the pairs among pictures that are there twice.

    Of pictures with equal pixels the first is paired with each other one, and it alone is compared with other
    pictures.
    """
    owners: dict[str, list[int]] = defaultdict(list)
    for number, trace in enumerate(traces):
        owners[trace.exact].append(number)
    exact = [(same[0], other) for same in owners.values() for other in same[1:]]
    firsts = sorted(same[0] for same in owners.values())
    near = {pair for pair in _candidates(traces, firsts) if _alike(traces, pair)}
    return Duplicates(exact, sorted(near))


def _candidates(traces: Sequence[Trace], numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs whose hashes differ in at most `NEAR` bits: the products of their signs add up to the rest."""
    hashes = [traces[number].perceptual for number in numbers]
    signs = torch.tensor([[1.0 if each >> bit & 1 else -1.0 for bit in range(64)] for each in hashes])
    for start in range(0, len(numbers), _ROWS):
        agreement = signs[start : start + _ROWS] @ signs.T
        for row, column in (agreement >= 64 - 2 * NEAR).nonzero().tolist():
            if start + row < column:
                yield numbers[start + row], numbers[column]


def _alike(traces: Sequence[Trace], pair: tuple[int, int]) -> bool:
    """Whether the colours agree, too: hashes of pictures without structure are chance."""
    one, other = (traces[number].thumbnail.astype(float) for number in pair)
    return bool(np.sqrt(np.square(one - other).mean()) <= ALIKE)


def joined(groups: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Return groups in which the pictures of each pair are together: the name of one group for all."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for one, other in pairs:
        first, second = sorted((root(groups[one]), root(groups[other])))
        parent[second] = first
    return [root(group) for group in groups]
