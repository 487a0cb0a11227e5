"""Batches of labelled pictures: what each holds is settled by the seed, the pass and its place."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.draws import generator_of
from distill.images import Labelled, Labels, Pixels


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
