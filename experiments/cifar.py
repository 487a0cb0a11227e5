"""CIFAR-10 (Krizhevsky, 2009) as bytes in memory, and as training data."""

import json
from pathlib import Path

import lightning as L
import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Pixels = UInt8[Tensor, "n 3 32 32"]
Labels = Int[Tensor, " n"]


def cifar10(root: str | Path, *, train: bool) -> tuple[Pixels, Labels]:
    """Return the training or test pictures in their official order, and their classes.

    `root` holds what torchvision's `CIFAR10` reads (`cifar-10-batches-py/`), or the batches as pictures
    with one 1024-pixel row for each (`data_batch_1.png` …, `train_lables.json`, as they are published for
    the browser), or the first 8,000 test pictures as stacked columns (`test_000.webp` …).

    Raises FileNotFoundError if there is none of these.
    """
    root = Path(root)
    if (root / "cifar-10-batches-py").is_dir():
        from torchvision.datasets import CIFAR10

        data = CIFAR10(str(root), train=train)
        return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
    rows = sorted(root.glob("data_batch_?.png" if train else "test_batch.png"))
    if rows:
        names = root / ("train_lables.json" if train else "test_lables.json")
        return _pictures(rows), torch.tensor(json.loads(names.read_text()))
    columns = [] if train else sorted(root.glob("test_???.webp"))
    if columns:
        return _pictures(columns), torch.from_numpy(np.load(root / "test_labels.npy")).long()
    part = "training" if train else "test"
    raise FileNotFoundError(
        f"{root} holds no CIFAR-10 {part} pictures: point to a folder with cifar-10-batches-py/"
    )


def _pictures(paths: list[Path]) -> Pixels:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        parts = [np.asarray(Image.open(path).convert("RGB")).reshape(-1, 32, 32, 3) for path in paths]
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous()


class CifarImages(L.LightningDataModule):
    """Batches (images as bytes, classes): all training pictures, and the first `held_out` test pictures."""

    def __init__(
        self, root: str = "data", batch_size: int = 128, held_out: int = 512, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.root, self.batch_size, self.held_out, self.num_workers = root, batch_size, held_out, num_workers

    def setup(self, stage: str) -> None:
        self.training = TensorDataset(*cifar10(self.root, train=True))
        pictures, labels = cifar10(self.root, train=False)
        self.validation = TensorDataset(pictures[: self.held_out], labels[: self.held_out])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.training,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.validation, batch_size=self.batch_size)
