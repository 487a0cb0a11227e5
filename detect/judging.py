"""Which pictures of a set are learned from and which are judged on, so that none is both."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Int
from sklearn.model_selection import StratifiedGroupKFold

from detect.duplicates import Duplicates, find_duplicates, joined
from detect.equalise import widest_window
from detect.layouts import LayoutError, PictureSet, Sample
from detect.leaks import Folds
from detect.metrics import Labels
from detect.reading import Look, Reader
from detect.splits import split_by_group

FEWEST = 10
"""Pictures of each kind, below which nothing is said."""

Numbers = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Parts:
    """Numbers of the pictures that a detector learns from, is calibrated on, and is judged on."""

    learn: Numbers
    calibrate: Numbers
    judge: Numbers


class Plan:
    """A set's own splits, or folds of its groups, without copies."""

    def __init__(self, samples: Sequence[Sample], groups: Sequence[str], duplicates: Duplicates) -> None:
        self.samples, self.groups, self.duplicates = samples, groups, duplicates
        self.labels: Labels = np.array([sample.generated for sample in samples], dtype=int)
        copies = {other for _, other in duplicates.exact}
        self.kept = np.array([number not in copies for number in range(len(samples))])
        self.judge = self._judging_split()

    @classmethod
    def of(cls, looks: Sequence[Look]) -> Self:
        """Find the duplicates among pictures and make groups of them and of what is stated."""
        samples = [look.sample for look in looks]
        duplicates = find_duplicates([look.trace for look in looks])
        named = [sample.group or sample.name for sample in samples]
        return cls(samples, joined(named, [*duplicates.exact, *duplicates.near]), duplicates)

    def _judging_split(self) -> str | None:
        splits = {sample.split for sample in self.samples}
        return next((split for split in ("test", "val") if {"train", split} <= splits), None)

    def folds(self, present: np.ndarray) -> Folds:
        """Return the set's own training and test pictures, or else five folds that no group crosses.

        `present` says which pictures there are. Copies are left out, and of those judged on also pictures
        whose group was trained on.
        """
        usable = self.kept & present
        splits = np.array([sample.split for sample in self.samples])
        if self.judge is not None:
            train = np.flatnonzero(usable & (splits == "train"))
            known = {self.groups[int(number)] for number in train}
            fresh = np.array([group not in known for group in self.groups])
            return [(train, np.flatnonzero(usable & (splits == self.judge) & fresh))]
        numbers = np.flatnonzero(usable)
        labels, groups = self.labels[numbers], np.array(self.groups)[numbers]
        count = min(5, *(len(set(groups[labels == kind])) for kind in (0, 1)))
        folds = StratifiedGroupKFold(count, shuffle=True, random_state=0)
        return [(numbers[one], numbers[other]) for one, other in folds.split(numbers, labels, groups)]

    def parts(self, *, held_out: float = 0.25, judged: float = 0.3) -> Parts:
        """Return three parts that no group crosses, without copies.

        Args:
            held_out: share of the training groups that are calibrated on.
            judged: share of all groups that are judged on, in a set without splits.
        """
        if self.judge is not None:
            train, judge = self.folds(np.ones(len(self.samples), dtype=bool))[0]
        else:
            roles = np.array(split_by_group(self.groups, {"train": 1 - judged, "test": judged}))
            train, judge = (np.flatnonzero(self.kept & (roles == role)) for role in ("train", "test"))
        shares = {"learn": 1 - held_out, "calibrate": held_out}
        roles = np.array(split_by_group(self.groups, shares, seed=1))[train]
        return Parts(train[roles == "learn"], train[roles == "calibrate"], judge)


@dataclass(frozen=True)
class Survey:
    """A set of pictures of which each file was read once."""

    pictures: PictureSet
    looks: list[Look]
    failed: dict[str, str]
    """Files that could not be read, with the reason."""
    plan: Plan

    @classmethod
    def of(cls, pictures: PictureSet, *, progress: Callable[[float], object] = lambda share: None) -> Self:
        """Read a set, find its duplicates, and plan who is judged on what.

        Raises LayoutError where fewer than ten pictures of one kind can be read.
        """
        reader = Reader(len(pictures.samples), progress)
        looks = reader.look(pictures.samples)
        counts = Counter(look.sample.generated for look in looks)
        for kind, word in ((False, "real"), (True, "generated")):
            if counts[kind] < FEWEST:
                raise LayoutError(
                    f"{FEWEST} pictures of each kind are needed; {counts[kind]} {word} ones can be read"
                )
        return cls(pictures, looks, reader.failed, Plan.of(looks))

    @property
    def sides(self) -> tuple[int, int]:
        """The shortest and the longest side of its pictures."""
        sides = [side for look in self.looks for side in (look.facts.width, look.facts.height)]
        return min(sides), max(sides)

    def widest_window(self, side: int) -> int:
        """Return the widest window that becomes a picture of `side`: see `detect.equalise`."""
        return widest_window((min(look.facts.width, look.facts.height) for look in self.looks), side)
