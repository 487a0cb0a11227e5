"""Folders of pictures as training data: a fixed split by file order, random crops, captions from names and
colours."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, IterableDataset

from experiments.captions import caption, shortened
from imaging.io import read


@dataclass(frozen=True)
class Source:
    """Pictures that match one pattern below the data folder."""

    pattern: str
    """Glob below the root, for instance `photos/*.jpg`."""
    medium: str = "photo"
    """The word that captions open with."""
    hold_out_every: int = 15
    """Every so many files, in name order, one is held out for validation."""
    repeat: int = 1
    """How often a training picture counts, to balance a small source."""


@dataclass(frozen=True)
class Example:
    """One picture in memory: bytes, not floats, so that a thousand fit."""

    name: str
    pixels: UInt8[Tensor, "3 height width"]
    caption: str


def load_examples(
    root: Path, sources: list[Source], *, short_side: int
) -> tuple[list[Example], list[Example]]:
    """Read every source and return (training, held-out) examples, each with its short side at `short_side`
    pixels.

    Raises FileNotFoundError when a pattern matches nothing.
    """
    training: list[Example] = []
    held_out: list[Example] = []
    for source in sources:
        paths = sorted(root.glob(source.pattern))
        if not paths:
            raise FileNotFoundError(
                f"no picture matches {root / source.pattern}; point --data.root at the data folder"
            )
        for index, path in enumerate(paths):
            example = _load(path, source.medium, short_side)
            if index % source.hold_out_every == source.hold_out_every // 2:
                held_out.append(example)
            else:
                training.extend([example] * source.repeat)
    return training, held_out


def _load(path: Path, medium: str, short_side: int) -> Example:
    image = read(path).pixels[:1]
    scale = short_side / min(image.shape[-2:])
    if scale != 1:
        size = [round(side * scale) for side in image.shape[-2:]]
        image = interpolate(image, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    pixels = (image[0] * 255).round().to(torch.uint8)
    return Example(path.name, pixels, caption(path, image[0], medium=medium))


def random_crop(
    image: UInt8[Tensor, "3 height width"], side: int, *, largest_zoom: float, generator: torch.Generator
) -> Float[Tensor, "3 side side"]:
    """A random square crop, mirrored half of the time, taken at a zoom drawn from [1, `largest_zoom`]."""
    zoom = 1 + float(torch.rand((), generator=generator)) * (largest_zoom - 1)
    window = max(8, round(side / zoom))
    top, left = (
        int(torch.randint(extent - window + 1, (), generator=generator)) for extent in image.shape[1:]
    )
    crop = image[:, top : top + window, left : left + window].float() / 255
    if window != side:
        crop = interpolate(crop[None], size=[side, side], mode="bicubic", antialias=True)[0].clamp(0, 1)
    return crop.flip(-1) if torch.rand((), generator=generator) < 0.5 else crop


class _Crops(IterableDataset):
    """An endless stream of random crops; a worker's stream depends on the seed and its number alone."""

    def __init__(self, examples: list[Example], side: int, largest_zoom: float, seed: int) -> None:
        self.examples, self.side, self.largest_zoom, self.seed = examples, side, largest_zoom, seed

    def __iter__(self) -> Iterator[dict[str, Tensor | str]]:
        worker = torch.utils.data.get_worker_info()
        generator = torch.Generator().manual_seed(self.seed + (worker.id + 1) * 7919 if worker else self.seed)
        while True:
            for index in torch.randperm(len(self.examples), generator=generator).tolist():
                example = self.examples[index]
                image = random_crop(
                    example.pixels, self.side, largest_zoom=self.largest_zoom, generator=generator
                )
                words = shortened(example.caption, float(torch.rand((), generator=generator)))
                yield {"image": image, "caption": words}


class PictureCrops(L.LightningDataModule):
    """Random crops for training, centre crops of held-out pictures for validation.

    Batches are dictionaries: `image` float [batch, 3, side, side] in [0,1] and `caption`, a list of strings.
    """

    def __init__(
        self,
        root: str = "data",
        sources: list[Source] | None = None,
        crop: int = 128,
        batch_size: int = 8,
        short_side: int = 256,
        largest_zoom: float = 1.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root, self.sources = Path(root), sources or [Source("*.jpg")]
        self.crop, self.batch_size, self.short_side = crop, batch_size, short_side
        self.largest_zoom, self.num_workers, self.seed = largest_zoom, num_workers, seed
        self.epoch_offset = 0

    def setup(self, stage: str) -> None:
        self.training, self.held_out = load_examples(self.root, self.sources, short_side=self.short_side)

    def train_dataloader(self) -> DataLoader:
        # A resumed run must not see the first crops again, so its stream starts from the step it resumes at.
        step = self.trainer.global_step if self.trainer else 0
        stream = _Crops(self.training, self.crop, self.largest_zoom, self.seed + step)
        return DataLoader(stream, batch_size=self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        side = self.short_side
        images = [centre(example.pixels, side) for example in self.held_out]
        items: Any = [
            {"image": image, "caption": e.caption} for image, e in zip(images, self.held_out, strict=True)
        ]
        return DataLoader(items, batch_size=self.batch_size)


def centre(image: UInt8[Tensor, "3 height width"], side: int) -> Float[Tensor, "3 side side"]:
    """The central square, in [0,1]."""
    top, left = ((extent - side) // 2 for extent in image.shape[1:])
    return image[:, top : top + side, left : left + side] / 255
