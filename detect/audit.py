"""Could a set of pictures be told apart without looking at them? The audit that comes before every training.

A classifier is trained on what each file gives away beside its pixels, and judged as detectors are. Where it
does better than chance, a detector's figure on that set may be about files and not about generators.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from detect.equalise import Equaliser, Level
from detect.judging import FEWEST, Plan, Survey
from detect.layouts import PictureSet
from detect.leaks import Leak, columns_of_facts, control, leak_of
from detect.reading import Reader
from detect.splits import crossing


@dataclass(frozen=True)
class LevelAudit:
    """A set at one level of hygiene."""

    level: Level
    dropped_real: int
    """Pictures below the side that all are brought to."""
    dropped_generated: int
    leaks: list[Leak]
    """By part of the file, and all of them together as `metadata`."""
    spectrum: Leak
    """Statistics of block frequencies: no leak of files, the row that a detector has to beat."""
    control: float
    """The same with shuffled labels."""
    control_error: float
    """Two standard errors of an AUROC where there is nothing to find."""

    @property
    def contaminated(self) -> list[str]:
        return [leak.what for leak in self.leaks if leak.contaminated]

    @property
    def control_holds(self) -> bool:
        return abs(self.control - 0.5) <= self.control_error


@dataclass(frozen=True)
class Audit:
    """What is known of a set of pictures before anything is trained on it."""

    layout: str
    counts: dict[str, tuple[int, int]]
    """Real and generated pictures of each split."""
    sources: dict[str, int]
    unmatched: int
    failed: dict[str, str]
    """Files that could not be read, with the reason."""
    exact: int
    near: int
    exact_across_splits: int
    near_across_splits: int
    across_labels: int
    """Pairs of which one is called real and the other generated."""
    groups: int
    """Source groups: pictures that descend from one another count once."""
    crossing_groups: int
    """Groups of which pictures lie in several splits."""
    judged: tuple[int, int]
    """Real and generated pictures that classifiers were judged on, without those that training has seen."""
    levels: list[LevelAudit] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        """One sentence for each thing that is wrong with the set; none for a clean one."""
        found: list[str] = []
        for level in self.levels:
            found += [
                f"{level.level}: {leak.what} alone reaches AUROC {leak.auroc:.3f}"
                for leak in level.leaks
                if leak.contaminated
            ]
            if not level.control_holds:
                found.append(f"{level.level}: shuffled labels give AUROC {level.control:.3f}, not 0.5")
        if self.exact:
            found.append(
                f"{self.exact} pictures are copies, {self.exact_across_splits} of them across splits"
            )
        if self.near_across_splits:
            found.append(f"{self.near_across_splits} pairs of near-duplicates lie in different splits")
        if self.across_labels:
            found.append(f"{self.across_labels} pairs of duplicates are labelled both real and generated")
        if self.crossing_groups:
            found.append(f"{self.crossing_groups} of {self.groups} source groups lie in several splits")
        return found


def audit(
    pictures: PictureSet | Survey,
    *,
    levels: Sequence[Level] = ("raw", "codec-equalised"),
    side: int = 256,
    progress: Callable[[float], object] = lambda share: None,
) -> Audit:
    """Audit a set of pictures at each of `levels`.

    Args:
        pictures: from `detect.layouts.read_layout`, or surveyed already.
        levels: of hygiene, see `detect.equalise`; all pictures are read once for each.
        side: of pictures after `codec+size-equalised`.
        progress: called with the share of the work that is done.

    Raises:
        LayoutError: the pictures that can be read are all of one kind, or fewer than ten of one.
        ValueError: a level leaves fewer than ten of one kind.
    """
    if isinstance(pictures, Survey):
        return _report(pictures, _levels(pictures, levels, side, progress))
    # the survey is one more pass over the pictures
    part = 1 / (len(levels) + 1)
    surveyed = Survey.of(pictures, progress=lambda share: progress(part * share))
    rest = _levels(surveyed, levels, side, lambda share: progress(part + (1 - part) * share))
    return _report(surveyed, rest)


def _levels(
    surveyed: Survey, levels: Sequence[Level], side: int, progress: Callable[[float], object]
) -> list[LevelAudit]:
    reader = Reader(len(surveyed.looks) * len(levels), progress)
    widest = surveyed.widest_window(side)
    equalisers = [Equaliser(level=level, side=side, widest=widest) for level in levels]
    return [_audit_level(each, surveyed, reader) for each in equalisers]


def _audit_level(equaliser: Equaliser, surveyed: Survey, reader: Reader) -> LevelAudit:
    looks, plan = surveyed.looks, surveyed.plan
    described = reader.describe(looks, equaliser)
    present = np.array([each is not None for each in described])
    lost = [int((~present & (plan.labels == kind)).sum()) for kind in (0, 1)]
    _check_left(equaliser, plan, lost)
    blank = np.zeros_like(next(each for each in described if each is not None).statistics)
    statistics = np.stack([blank if each is None else each.statistics for each in described])
    facts = [look.facts if each is None else each.facts for look, each in zip(looks, described, strict=True)]
    folds, labels = plan.folds(present), plan.labels
    aspects = columns_of_facts(facts)
    aspects["metadata"] = np.concatenate(list(aspects.values()), axis=1)
    leaks = [leak_of(what, columns, labels, folds) for what, columns in aspects.items()]
    shuffled, error = control(statistics, labels, folds)
    spectrum = leak_of("spectrum", statistics, labels, folds)
    return LevelAudit(equaliser.level, lost[0], lost[1], leaks, spectrum, shuffled, error)


def _check_left(equaliser: Equaliser, plan: Plan, lost: Sequence[int]) -> None:
    left = [int((plan.labels == kind).sum()) - lost[kind] for kind in (0, 1)]
    if min(left) < FEWEST:
        raise ValueError(
            f"{equaliser.level} at {equaliser.side} px leaves {left[0]} real and {left[1]} generated "
            f"pictures, of which {FEWEST} are needed: choose a smaller side"
        )


def _report(surveyed: Survey, levels: list[LevelAudit]) -> Audit:
    pictures, plan = surveyed.pictures, surveyed.plan
    samples = plan.samples
    splits = [sample.split or "all" for sample in samples]
    kinds = {split: [0, 0] for split in dict.fromkeys(splits)}
    for split, sample in zip(splits, samples, strict=True):
        kinds[split][sample.generated] += 1
    exact, near = plan.duplicates.exact, plan.duplicates.near
    apart = [[splits[one] != splits[other] for one, other in pairs] for pairs in (exact, near)]
    clashes = sum(samples[one].generated != samples[other].generated for one, other in [*exact, *near])
    judged = plan.labels[np.concatenate([test for _, test in plan.folds(np.ones(len(samples), dtype=bool))])]
    return Audit(
        layout=pictures.layout,
        counts={split: (real, generated) for split, (real, generated) in kinds.items()},
        sources=dict(Counter(sample.source for sample in samples if sample.source)),
        unmatched=pictures.unmatched,
        failed=surveyed.failed,
        exact=len(exact),
        near=len(near),
        exact_across_splits=sum(apart[0]),
        near_across_splits=sum(apart[1]),
        across_labels=clashes,
        groups=len(set(plan.groups)),
        crossing_groups=len(crossing(plan.groups, splits)),
        judged=(int((judged == 0).sum()), int((judged == 1).sum())),
        levels=levels,
    )
