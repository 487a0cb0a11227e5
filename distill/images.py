"""Labelled pictures in memory, as bytes: CIFAR, npz files, folders of pictures."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

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


def to_unit(pixels: Pixels) -> Float[Tensor, "n 3 height width"]:
    """Return bytes as float32 in [0, 1]."""
    return pixels.float() / 255
