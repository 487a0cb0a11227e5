"""Labelled pictures in memory, as bytes: CIFAR, npz files, folders of pictures; and their batches."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from distill.draws import generator_of
from imaging.io import PICTURE_SUFFIXES, read
from imaging.whole import whole

Pixels = UInt8[Tensor, "n 3 height width"]
Labels = Int[Tensor, " n"]


@dataclass(frozen=True)
class Labelled:
    """Pictures of one size with their classes.

    Raises ValueError for labels that are not one per picture, or outside the classes.
    """

    pixels: Pixels
    labels: Labels
    classes: int

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            got = f"{self.pixels.dtype}, {tuple(self.pixels.shape)}"
            raise ValueError(f"pictures are bytes [n, 3, height, width]; got {got}")
        if len(self.pixels) != len(self.labels) or not len(self.labels):
            raise ValueError(f"{len(self.pixels)} pictures have {len(self.labels)} labels")
        low, high = (int(value) for value in self.labels.aminmax())
        if low < 0 or high >= self.classes:
            raise ValueError(f"labels lie in 0 to {self.classes - 1}; got {low} to {high}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor | slice) -> "Labelled":
        return Labelled(self.pixels[indices], self.labels[indices], self.classes)


def labelled(root: str | Path, *, train: bool) -> Labelled:
    """Return the training or the test pictures of a data set.

    `root` is a folder that torchvision's `CIFAR10` or `CIFAR100` reads; one with CIFAR-10 as pictures of
    one 1024-pixel row each (`data_batch_1.png` …, `train_lables.json`), or with its first test pictures as
    stacked columns (`test_000.webp` …); a folder `train/` or `test/` with a folder of pictures for each
    class; or an npz file of `images` and `labels`, which may begin with `train_` and `test_`.

    Raises FileNotFoundError if it is none of these, and ValueError if what it holds does not fit together.
    """
    root, part = Path(root), "train" if train else "test"
    if root.suffix == ".npz" and root.is_file():
        return _npz(root, part)
    found = cifar(root, train=train) or _folders(root, part)
    if found is not None:
        return found
    raise FileNotFoundError(f"{root} holds no {part} pictures: point to CIFAR, an npz file or class folders")


def cifar(root: Path, *, train: bool) -> Labelled | None:
    """Return the training or test pictures of CIFAR in their official order, in any of the forms that
    `labelled` names; None where a folder holds none."""
    part = "train" if train else "test"
    return _torchvision(root, part) or _rows(root, part) or _columns(root, part)


def _torchvision(root: Path, part: str) -> Labelled | None:
    kinds = {"cifar-10-batches-py": ("CIFAR10", 10), "cifar-100-python": ("CIFAR100", 100)}
    for folder, (kind, classes) in kinds.items():
        if (root / folder).is_dir():
            from torchvision import datasets

            data = getattr(datasets, kind)(str(root), train=part == "train")
            pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
            return Labelled(pixels, torch.tensor(data.targets), classes)
    return None


def _rows(root: Path, part: str) -> Labelled | None:
    files = sorted(root.glob("data_batch_?.png" if part == "train" else "test_batch.png"))
    if not files:
        return None
    labels = torch.tensor(json.loads((root / f"{part}_lables.json").read_text()))
    # a row of 1024 pixels is a picture
    pixels = torch.cat([_bytes(file)[0].permute(1, 2, 0).reshape(-1, 32, 32, 3) for file in files])
    return Labelled(pixels.permute(0, 3, 1, 2).contiguous(), labels, 10)


def _columns(root: Path, part: str) -> Labelled | None:
    files = sorted(root.glob("test_???.webp")) if part == "test" else []
    if not files:
        return None
    pixels = torch.cat([_bytes(file)[0].reshape(3, -1, 32, 32).transpose(0, 1) for file in files])
    return Labelled(pixels.contiguous(), torch.from_numpy(np.load(root / "test_labels.npy")).long(), 10)


def _folders(root: Path, part: str) -> Labelled | None:
    names = sorted(each.name for each in (root / part).glob("*/"))
    files = [
        (file, number)
        for number, name in enumerate(names)
        for file in sorted((root / part / name).iterdir())
        if file.suffix.lower() in PICTURE_SUFFIXES
    ]
    if not files:
        return None
    pictures = [_bytes(file) for file, _ in files]
    odd = [i for i, each in enumerate(pictures) if each.shape != pictures[0].shape]
    if odd:
        first, other = (tuple(pictures[i].shape[2:]) for i in (0, odd[0]))
        raise ValueError(f"pictures have one size, here {first}; {files[odd[0]][0]} has {other}")
    return Labelled(torch.cat(pictures), torch.tensor([number for _, number in files]), len(names))


def write_npz(path: Path, pixels: Pixels, labels: Labels) -> None:
    """Write pictures with their classes as an npz file that `labelled` reads, whole or not at all."""
    images, classes = pixels.permute(0, 2, 3, 1).cpu().numpy(), labels.cpu().numpy()
    with whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, images=images, labels=classes)


def check_npz(path: Path) -> None:
    """Raise ValueError for a name that `labelled` would not read as an npz file."""
    if path.suffix != ".npz":
        raise ValueError(f"the set is written as npz; got {path.name}")


def _npz(path: Path, part: str) -> Labelled:
    with np.load(path) as file:
        own = {name: f"{part}_{name}" for name in ("images", "labels")}
        names = {name: long if long in file else name for name, long in own.items()}
        missing = [name for name in names.values() if name not in file]
        if missing:
            raise ValueError(f"{path} holds {', '.join(file)}, not {missing[0]!r}")
        images, labels = file[names["images"]], torch.from_numpy(file[names["labels"]]).long()
        classes = int(file["classes"]) if "classes" in file else int(labels.max()) + 1
    if images.dtype != np.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
        raise ValueError(f"images in {path} are not bytes [n, height, width, 3] but {images.dtype}")
    pixels = torch.from_numpy(images)
    if images.shape[3] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    return Labelled(pixels.contiguous(), labels, classes)


def _bytes(path: Path) -> Pixels:
    integers = read(path).integers
    if integers.dtype != torch.uint8:
        raise ValueError(f"{path} has 16 bits a channel; training pictures have 8")
    return integers[:1]


def crop_and_flip(pixels: Pixels, generator: torch.Generator, padding: int = 4) -> Pixels:
    """Shift each picture by up to `padding` pixels, zeros coming in, and mirror half of them."""
    count, _, height, width = pixels.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    padded = F.pad(pixels, (padding,) * 4)
    rows, columns = top + torch.arange(height), torch.arange(width)
    columns = left + torch.where(mirrored, columns.flip(0), columns)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def to_unit(pixels: Pixels) -> Float[Tensor, "n 3 height width"]:
    """Return bytes as float32 in [0, 1]."""
    return pixels.float() / 255


class Batches:
    """Batches (bytes, classes), shuffled anew in each pass; Lightning's trainer saves where it is.

    What a batch holds depends on the seed, the pass and its place alone, not on the processes that share
    it: process `rank` of `world` gets pictures rank, rank + world, … of a batch of `batch_size`.
    """

    def __init__(
        self,
        real: Labelled,
        batch_size: int,
        *,
        seed: int = 0,
        generated: Labelled | None = None,
        generated_share: float = 0.7,
        augment: Callable[[Pixels, torch.Generator], Pixels] = crop_and_flip,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world or not 0 < batch_size <= len(real):
            raise ValueError(
                f"a batch of {batch_size} is not shared by {world} processes, or not there among {len(real)} "
                "pictures"
            )
        self.real, self.generated, self.batch_size = real, generated, batch_size
        self.taken = 0 if generated is None else round(generated_share * batch_size)
        self.seed, self.augment, self.rank, self.world = seed, augment, rank, world
        self.passes, self.place = 0, 0

    def __len__(self) -> int:
        # a pass has as many pictures as there are real ones, generated ones included
        return len(self.real) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Pixels, Labels]]:
        if self.place >= len(self):
            self.passes, self.place = self.passes + 1, 0
        order = self._order()
        while self.place < len(self):
            self.place += 1
            yield self._batch(order, self.place - 1)

    def _order(self) -> dict[str, Tensor]:
        generator = generator_of(self.seed, self.passes)
        needed = {"real": (self.real, self.batch_size - self.taken)}
        if self.generated is not None:
            needed["generated"] = (self.generated, self.taken)
        orders = {}
        for name, (source, each) in needed.items():
            rounds = -(-len(self) * each // len(source))
            shuffled = [torch.randperm(len(source), generator=generator) for _ in range(rounds)]
            orders[name] = torch.cat(shuffled) if shuffled else torch.zeros(0, dtype=torch.long)
        return orders

    def _batch(self, order: dict[str, Tensor], place: int) -> tuple[Pixels, Labels]:
        each, taken = self.batch_size - self.taken, self.taken
        chosen = order["real"][place * each : (place + 1) * each]
        pixels, labels = self.real.pixels[chosen], self.real.labels[chosen]
        if self.generated is not None:
            chosen = order["generated"][place * taken : (place + 1) * taken]
            pixels = torch.cat([pixels, self.generated.pixels[chosen]])
            labels = torch.cat([labels, self.generated.labels[chosen]])
        generator = generator_of(self.seed, self.passes, place)
        own = slice(self.rank, None, self.world)
        return self.augment(pixels, generator)[own], labels[own]

    def state_dict(self) -> dict[str, int]:
        """Return which pass it is, and which batch comes next."""
        return {"passes": self.passes, "place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.passes, self.place = state["passes"], state["place"]


def unchanged(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """Return pictures as they are: no augmentation."""
    return pixels
