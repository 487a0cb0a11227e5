"""Sets of real and generated pictures, audited first, as training data for detectors."""

from collections.abc import Iterable
from dataclasses import replace

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detect.audit import Audit, audit
from detect.equalise import Equaliser, Level, Pixels
from detect.judging import Survey
from detect.layouts import read_layout
from experiments.audit import lines
from imaging.io import read
from imaging.picture import on_white


class EqualisedPictures(Dataset):
    """Pixels, labels and groups of some pictures of a set, each read and equalised once and then remembered.

    Pictures too small for the equaliser are left out.

    Raises ValueError for pictures that are not all of one size then.
    """

    def __init__(self, surveyed: Survey, numbers: Iterable[int], equaliser: Equaliser) -> None:
        sized, (shortest, longest) = equaliser.level == "codec+size-equalised", surveyed.sides
        if not sized and shortest != longest:
            raise ValueError(
                f"the pictures have sides of {shortest} to {longest} px: choose the level "
                "codec+size-equalised and a side"
            )
        self.side = equaliser.side if sized else shortest
        facts = {number: surveyed.looks[number].facts for number in numbers}
        chosen = [number for number, each in facts.items() if min(each.width, each.height) >= self.side]
        samples = [surveyed.looks[number].sample for number in chosen]
        self._paths = [sample.path for sample in samples]
        self.labels = torch.tensor([int(sample.generated) for sample in samples])
        self.sources = [sample.source for sample in samples]
        self.groups = [surveyed.plan.groups[number] for number in chosen]
        self._equaliser = equaliser
        self._known: dict[int, Pixels] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Pixels, Tensor]:
        if index not in self._known:
            self._known[index] = self._equaliser(on_white(read(self._paths[index]))).pixels
        return self._known[index], self.labels[index]

    def images(self) -> Float[Tensor, "n 3 side side"]:
        """Return all pictures, in [0, 1]."""
        return torch.stack([self[index][0] for index in range(len(self))]) / 255


class DetectionPictures(L.LightningDataModule):
    """Batches (pictures as bytes, 1 for generated) of a set, after its audit.

    Three parts that no source group crosses are learned from, calibrated on and judged on.

    Args:
        root: folder of a layout that `detect.layouts` reads.
        level: of hygiene; pictures of several sizes need `codec+size-equalised`.
        side: of pictures after that.
        batch_size: pictures of a batch.
        held_out: share of the training pictures that are calibrated on.
        judged: share that is judged on, in a set without a test split.
        limit: at most so many pictures are learned from, half of each kind; all without.
        num_workers: processes that read pictures.
    """

    def __init__(
        self,
        root: str = "data",
        level: Level = "codec-equalised",
        side: int = 256,
        batch_size: int = 64,
        held_out: float = 0.25,
        judged: float = 0.3,
        limit: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.root, self.batch_size, self.num_workers = root, batch_size, num_workers
        self.held_out, self.judged, self.limit = held_out, judged, limit
        self.equaliser = Equaliser(level=level, side=side, widest=2 * side)
        self.audit: Audit | None = None

    def setup(self, stage: str) -> None:
        if self.audit is not None:
            return
        surveyed = Survey.of(read_layout(self.root))
        self.equaliser = replace(self.equaliser, widest=surveyed.widest_window(self.equaliser.side))
        parts = surveyed.plan.parts(held_out=self.held_out, judged=self.judged)
        learned = parts.learn
        if self.limit is not None:
            kinds = [learned[surveyed.plan.labels[learned] == kind][: self.limit // 2] for kind in (0, 1)]
            learned = np.sort(np.concatenate(kinds))
        self.learn, self.calibrate, self.judge = (
            EqualisedPictures(surveyed, part, self.equaliser)
            for part in (learned, parts.calibrate, parts.judge)
        )
        levels: list[Level] = ["raw", self.equaliser.level]
        self.audit = audit(surveyed, levels=list(dict.fromkeys(levels)), side=self.equaliser.side)
        rank_zero_info("\n".join(lines(self.audit)))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.learn,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=len(self.learn) > self.batch_size,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.calibrate, batch_size=self.batch_size, num_workers=self.num_workers)
