"""CIFAR-10 (Krizhevsky, 2009) as bytes in memory, and as training data."""

from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader, TensorDataset

from distill.images import Labels, Pixels, cifar

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(root: str | Path, *, train: bool) -> tuple[Pixels, Labels]:
    """Return the training or test pictures in their official order, and their classes.

    `root` holds what torchvision's `CIFAR10` reads (`cifar-10-batches-py/`), or the batches as pictures
    with one 1024-pixel row for each (`data_batch_1.png` …, `train_lables.json`, as they are published for
    the browser), or the first 8,000 test pictures as stacked columns (`test_000.webp` …).

    Raises FileNotFoundError if there is none of these.
    """
    found = cifar(Path(root), train=train)
    if found is not None and found.classes == len(LABELS):
        return found.pixels, found.labels
    part = "training" if train else "test"
    raise FileNotFoundError(
        f"{root} holds no CIFAR-10 {part} pictures: point to a folder with cifar-10-batches-py/"
    )


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
