"""How well scores tell generated pictures from real ones, and how far that can be trusted.

Labels are 1 for generated and 0 for real; a score is higher the more a picture looks generated. A threshold
is always chosen on other data than it is judged on: nothing here chooses one on the data that it scores.

scikit-learn and SciPy are imported where they are used: answering for a picture needs neither.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Labels = Int[np.ndarray, " n"]
Scores = Float[np.ndarray, " n"]
Statistic = Callable[[Any, Any], float]
Interval = tuple[float, float]

FEW = 500
"""Below this many pictures equal-width bins of probabilities hold too little."""


def auroc(labels: Labels, scores: Scores) -> float:
    """Return the chance that a generated picture scores above a real one; ties count half.

    Raises ValueError unless there are pictures of both kinds.
    """
    from scipy.stats import rankdata

    # by mid-ranks (Mann and Whitney, 1947): scikit-learn's is equal and, in a bootstrap, twenty times slower
    labels = _both(labels)
    generated = int(labels.sum())
    ranks = rankdata(scores)[labels == 1].sum()
    return float((ranks - generated * (generated + 1) / 2) / (generated * (len(labels) - generated)))


def average_precision(labels: Labels, scores: Scores) -> float:
    """Return the mean precision over recalls, without interpolation; it depends on the share of generated
    ones.

    Raises ValueError unless there are pictures of both kinds.
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(_both(labels), scores))


def balanced_accuracy(labels: Labels, scores: Scores, threshold: float) -> float:
    """Return the mean of both kinds' accuracies where scores of `threshold` and above say generated.

    Raises ValueError unless there are pictures of both kinds.
    """
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(_both(labels), np.asarray(scores) >= threshold))


def share_above(scores: Scores, threshold: float) -> float:
    """Return the share of scores that reach `threshold`: of generated ones the TPR, of real ones the FPR."""
    return float((np.asarray(scores) >= threshold).mean())


def threshold_at(false_positives: float, real: Scores) -> float:
    """Return the lowest threshold that at most this share of real pictures' scores reaches.

    `real` are scores of calibration data, of which at least `1 / false_positives` are needed for the
    threshold to lie among them; with fewer it lies just above all of them.

    Raises ValueError without scores, or for a share that is not between 0 and 1.
    """
    if not 0 < false_positives < 1:
        raise ValueError(f"a false positive rate lies between 0 and 1; got {false_positives}")
    ordered = np.sort(np.asarray(real, dtype=np.float64))
    if not len(ordered):
        raise ValueError("a threshold needs scores of real pictures; got none")
    allowed = math.floor(false_positives * len(ordered) + 1e-9)
    return float(np.nextafter(ordered[len(ordered) - allowed - 1], np.inf))


def brier(labels: Labels, probabilities: Scores) -> float:
    """Return the mean squared distance of probabilities from labels."""
    return float(np.square(np.asarray(probabilities) - labels).mean())


def calibration_error(labels: Labels, probabilities: Scores, *, bins: int = 15) -> float:
    """Return the expected calibration error: |mean probability - share generated|, weighed over bins.

    Bins are equally wide; below `FEW` pictures they hold equally many instead (Naeini et al., 2015, AAAI).
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if len(labels) < FEW:
        groups = np.array_split(np.argsort(probabilities, kind="stable"), bins)
    else:
        number = np.minimum((probabilities * bins).astype(int), bins - 1)
        groups = [np.flatnonzero(number == index) for index in range(bins)]
    gaps = (
        len(group) * abs(probabilities[group].mean() - labels[group].mean()) for group in groups if len(group)
    )
    return float(sum(gaps) / len(labels))


def bootstrap(
    statistic: Statistic,
    labels: Labels,
    scores: Scores,
    *,
    groups: Sequence[str] | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the 95 % percentile interval of `statistic(labels, scores)` over resampled pictures.

    Pictures are drawn within their label, or whole source groups where `groups` names them.

    Raises ValueError unless there are pictures of both kinds.
    """
    labels, scores = _both(labels), np.asarray(scores)
    generator = np.random.default_rng(seed)
    draw = _by_label(labels) if groups is None else _by_group(groups)
    values: list[float] = []
    for _ in range(rounds):
        chosen = draw(generator)
        if len(np.unique(labels[chosen])) == 2:  # a draw of groups may hold one kind alone
            values.append(statistic(labels[chosen], scores[chosen]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _by_label(labels: Labels) -> Callable[[np.random.Generator], np.ndarray]:
    kinds = [np.flatnonzero(labels == kind) for kind in (0, 1)]
    return lambda generator: np.concatenate([generator.choice(kind, len(kind)) for kind in kinds])


def _by_group(groups: Sequence[str]) -> Callable[[np.random.Generator], np.ndarray]:
    _, number = np.unique(np.asarray(groups), return_inverse=True)
    members = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])
    return lambda generator: np.concatenate(
        [members[index] for index in generator.integers(len(members), size=len(members))]
    )


def _both(labels: Labels) -> Labels:
    found = np.asarray(labels).astype(int)
    if not len(found) or found.min() != 0 or found.max() != 1:
        count = len(found)
        raise ValueError(f"both real (0) and generated (1) pictures are needed; got {count} of one kind")
    return found


@dataclass(frozen=True)
class Scorecard:
    """A detector on one set of pictures, at a threshold that was fixed before."""

    real: int
    generated: int
    auroc: float
    auroc_interval: Interval
    average_precision: float
    """At this set's own share of generated pictures."""
    balanced_accuracy: float
    real_right: float
    """Share of real pictures below the threshold."""
    generated_right: float
    """Share of generated pictures that reach it."""
    tpr_at_1: float
    """Share of generated pictures found, at the threshold that 1 % of calibration's real ones reach."""
    fpr_at_1: float
    """Share of this set's real pictures that reach that threshold."""
    tpr_at_5: float
    fpr_at_5: float
    calibration_error: float
    brier: float


def scorecard(
    labels: Labels,
    probabilities: Scores,
    *,
    threshold: float,
    calibration_real: Scores,
    groups: Sequence[str] | None = None,
    rounds: int = 1000,
) -> Scorecard:
    """Return every figure for one set of pictures.

    Args:
        labels: 1 for generated.
        probabilities: that a picture is generated, in [0, 1].
        threshold: of `balanced_accuracy`, fixed on calibration data.
        calibration_real: probabilities of calibration's real pictures, for the rates at 1 % and 5 %.
        groups: source groups, for the interval.
        rounds: of the bootstrap.

    Raises:
        ValueError: the pictures are all of one kind.
    """
    labels, probabilities = _both(labels), np.asarray(probabilities, dtype=np.float64)
    real, generated = probabilities[labels == 0], probabilities[labels == 1]
    one, five = (threshold_at(rate, calibration_real) for rate in (0.01, 0.05))
    return Scorecard(
        real=len(real),
        generated=len(generated),
        auroc=auroc(labels, probabilities),
        auroc_interval=bootstrap(auroc, labels, probabilities, groups=groups, rounds=rounds),
        average_precision=average_precision(labels, probabilities),
        balanced_accuracy=balanced_accuracy(labels, probabilities, threshold),
        real_right=1 - share_above(real, threshold),
        generated_right=share_above(generated, threshold),
        tpr_at_1=share_above(generated, one),
        fpr_at_1=share_above(real, one),
        tpr_at_5=share_above(generated, five),
        fpr_at_5=share_above(real, five),
        calibration_error=calibration_error(labels, probabilities),
        brier=brier(labels, probabilities),
    )
