"""Training data for classifiers: a part of the training pictures is held out to choose by; the test pictures
are never looked at."""

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from distill.batches import Batches, crop_and_flip, unchanged
from distill.images import Labelled, labelled


class LabelledImages(L.LightningDataModule):
    """Batches (images as bytes, classes) of whatever `distill.images.labelled` reads.

    Args:
        root: folder or npz file.
        batch_size: pictures of a batch, over all processes.
        held_out: training pictures to validate on, the same ones for every seed.
        limit: at most so many training pictures; all of them if None.
        generated: npz file of generated pictures with labels, mixed into every batch.
        generated_share: how much of a batch they are.
        augment: whether to shift and mirror.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        held_out: int = 1024,
        limit: int | None = None,
        generated: str | None = None,
        generated_share: float = 0.7,
        augment: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < generated_share < 1:
            raise ValueError(f"the generated share of a batch lies in (0, 1); got {generated_share}")
        self.root, self.batch_size, self.held_out, self.limit = root, batch_size, held_out, limit
        self.generated, self.generated_share = generated, generated_share
        self.augment, self.seed = augment, seed
        self.classes: int | None = None
        self._batches: Batches | None = None
        self._reached = {"passes": 0, "place": 0}

    def setup(self, stage: str) -> None:
        pictures = labelled(self.root, train=True)
        if not 0 < self.held_out < len(pictures):
            raise ValueError(f"of {len(pictures)} training pictures {self.held_out} cannot be held out")
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
        self.validation = pictures[order[: self.held_out]]
        self.training = pictures[order[self.held_out :][: self.limit]]
        self.made: Labelled | None = None
        if self.generated is not None:
            self.made = labelled(self.generated, train=True)
            same_size = self.made.pixels.shape[1:] == pictures.pixels.shape[1:]
            if self.made.classes > pictures.classes or not same_size:
                raise ValueError(f"the pictures of {self.generated} have other classes or another size")
        self.classes = pictures.classes

    def train_dataloader(self) -> Batches:
        assert self.trainer is not None
        self._batches = Batches(
            self.training,
            self.batch_size,
            seed=self.seed,
            generated=self.made,
            generated_share=self.generated_share,
            augment=crop_and_flip if self.augment else unchanged,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        self._batches.load_state_dict(self._reached)
        return self._batches

    # Lightning restores a loader only if nobody has asked for it before, as schedules do for its length

    def state_dict(self) -> dict[str, Any]:
        """Return which batch comes next."""
        return self._reached if self._batches is None else self._batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with that batch."""
        self._reached = state_dict

    def val_dataloader(self) -> DataLoader:
        return DataLoader(
            TensorDataset(self.validation.pixels, self.validation.labels), batch_size=self.batch_size
        )
