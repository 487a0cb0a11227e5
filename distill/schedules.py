"""Learning-rate schedules, as what multiplies the highest rate."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """Called before each step with its number, the steps of an epoch and those of the whole run."""

    def __call__(self, step: int, per_epoch: int, total: int) -> float: ...


@dataclass(frozen=True)
class Piecewise:
    """A tenth after each of these epochs (Rice, Wong and Kolter, ICML 2020, arXiv 2002.11569)."""

    milestones: tuple[int, ...] = (100, 150)
    factor: float = 0.1

    def __call__(self, step: int, per_epoch: int, total: int) -> float:
        epoch = step // per_epoch
        return self.factor ** sum(epoch >= each for each in self.milestones)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine down to nothing, after a linear rise over a share of the run."""

    warmup: float = 0.0

    def __call__(self, step: int, per_epoch: int, total: int) -> float:
        rise = self.warmup * total
        if step < rise:
            return (step + 1) / (rise + 1)
        return (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, total - rise)))) / 2


@dataclass(frozen=True)
class Cyclic:
    """A straight rise from nothing to `peak`, a share of the run, and a straight fall (Smith, 2017, arXiv
    1506.01186)."""

    peak: float = 0.5

    def __call__(self, step: int, per_epoch: int, total: int) -> float:
        # one step ahead, so that neither the first nor the last step is idle
        part = (step + 1) / (total + 1)
        return part / self.peak if part < self.peak else (1 - part) / (1 - self.peak)
