"""Which pictures of a set are learned from and which are judged on, so that none is both."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from detect.duplicates import Duplicates, find_duplicates, joined
from detect.layouts import Sample
from detect.leaks import Folds
from detect.metrics import Labels
from detect.reading import Look


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
