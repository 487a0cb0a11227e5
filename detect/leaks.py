"""How well a linear classifier of a few columns tells real from generated pictures that it did not see."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from detect.facts import Facts
from detect.metrics import Interval, Labels, Scores, auroc, bootstrap

Columns = Float[np.ndarray, "n columns"]
Folds = list[tuple[np.ndarray, np.ndarray]]
"""Numbers of the pictures to learn from, and of those to judge on."""

CONTAMINATED = 0.60
"""A classifier of files that ranks better than this, and surely better than chance, is a finding."""

_TOP = 8
_SHUFFLES = 5
_ROUNDS = 200


@dataclass(frozen=True)
class Leak:
    """How well something beside the picture tells generated pictures from real ones."""

    what: str
    auroc: float
    interval: Interval

    @property
    def contaminated(self) -> bool:
        return self.auroc > CONTAMINATED and self.interval[0] > 0.5


def columns_of_facts(facts: Sequence[Facts]) -> dict[str, Columns]:
    """Return what files give away as numbers for a linear classifier, by part of the file."""
    sizes = np.array([(each.width, each.height) for each in facts], dtype=float)
    shape = np.log(np.stack([sizes[:, 0], sizes[:, 1], sizes.prod(1), sizes[:, 0] / sizes[:, 1]], axis=1))
    flags = np.array([(each.exif, each.icc) for each in facts], dtype=float)
    density = np.log([[each.bytes_per_pixel] for each in facts])
    quality = np.array([(each.quality or 0, each.progressive) for each in facts], dtype=float)
    tables, sampling = (
        _indicators([getattr(each, name) for each in facts]) for name in ("quantisation", "subsampling")
    )
    return {
        "format": _indicators([each.format for each in facts]),
        "size": np.concatenate([shape, _indicators([(each.width, each.height) for each in facts])], axis=1),
        "bytes per pixel": density,
        "quantisation": np.concatenate([tables, sampling, quality], axis=1),
        "EXIF and profile": flags,
    }


def _indicators(values: Sequence[object]) -> Columns:
    """One column for each of the most frequent values."""
    top = [value for value, _ in Counter(values).most_common(_TOP)]
    return np.array([[value == each for each in top] for value in values], dtype=float)


def leak_of(what: str, columns: Columns, labels: Labels, folds: Folds) -> Leak:
    """Return how well `columns` tell the kinds apart: logistic regression, judged out of fold."""
    truth, scores = _out_of_fold(columns, labels, folds)
    return Leak(what, auroc(truth, scores), bootstrap(auroc, truth, scores, rounds=_ROUNDS))


def _out_of_fold(columns: Columns, labels: Labels, folds: Folds) -> tuple[Labels, Scores]:
    """Labels and scores of all pictures judged on, each by a classifier that did not see it."""
    scores = []
    for train, test in folds:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        scores.append(model.fit(columns[train], labels[train]).decision_function(columns[test]))
    return labels[np.concatenate([test for _, test in folds])], np.concatenate(scores)


def control(columns: Columns, labels: Labels, folds: Folds) -> tuple[float, float]:
    """Return the mean AUROC with shuffled labels, and two standard errors of one AUROC around 0.5."""
    generator = np.random.default_rng(0)
    numbers = np.concatenate([np.concatenate(fold) for fold in folds[:1]])
    found = []
    for _ in range(_SHUFFLES):
        shuffled = labels.copy()
        shuffled[numbers] = generator.permutation(labels[numbers])
        found.append(auroc(*_out_of_fold(columns, shuffled, folds)))
    judged = labels[np.concatenate([test for _, test in folds])]
    real, generated = int((judged == 0).sum()), int((judged == 1).sum())
    return float(np.mean(found)), 2 * np.sqrt((real + generated + 1) / (12 * real * generated))
