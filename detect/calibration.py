"""From scores to probabilities and verdicts, fixed on held-out pictures before anything is judged.

A detector ranks pictures; where its scores lie moves from set to set and from generator to generator, in
slope and in bias. Both are fitted here (Platt, 1999), to pictures that the detector was not trained on. A
verdict is one of three: between the two bounds a detector does not know, and says so.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from detect.metrics import Labels, Scores, threshold_at

Logits = Float[Tensor, " batch"]
Probabilities = Float[Tensor, " batch"]
Verdict = Literal["real", "generated", "unsure"]

THRESHOLD = 0.5
"""Of calibrated probabilities, at equal shares of real and generated pictures."""

_ROUNDS = 100


@dataclass(frozen=True)
class Calibration:
    """What turns a detector's logit into a probability and a verdict."""

    slope: float
    bias: float
    real_below: float
    """Probability below which a picture is called real."""
    generated_from: float
    """Probability from which on it is called generated; between the two a detector is unsure."""
    real: int
    """Pictures that it was fitted to."""
    generated: int
    data: str
    """What they were, in words."""

    @property
    def identity(self) -> str:
        """Eight hexadecimal digits that change with any of the figures."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def probabilities(self, logits: Logits) -> Probabilities:
        """Return the probability that pictures are generated, where half of all pictures are."""
        return torch.sigmoid(self.slope * logits + self.bias)

    def verdict(self, probability: float) -> Verdict:
        """Return what is said of a picture with this probability."""
        if probability >= self.generated_from:
            return "generated"
        return "real" if probability < self.real_below else "unsure"


def calibrate(logits: Scores, labels: Labels, *, data: str, error: float = 0.05) -> Calibration:
    """Fit slope, bias and the two bounds to held-out pictures.

    Args:
        logits: of pictures that the detector was not trained on.
        labels: 1 for generated.
        data: what the pictures are, in words.
        error: at most this share of real pictures is called generated, and of generated ones real.

    Raises:
        ValueError: there are fewer than ten pictures of one kind, a logit is not finite, or the scores of
            generated pictures are the lower ones.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels).astype(int)
    real, generated = int((labels == 0).sum()), int((labels == 1).sum())
    if min(real, generated) < 10:
        raise ValueError(
            f"calibration needs ten held-out pictures of each kind; got {real} real, {generated} generated"
        )
    slope, bias = platt(logits, labels)
    if slope <= 0:
        raise ValueError("the detector scores real pictures above generated ones: it cannot be calibrated")
    bias -= math.log(generated / real)  # as if half of the pictures were generated
    probabilities = 1 / (1 + np.exp(-(slope * logits + bias)))
    upper = threshold_at(error, probabilities[labels == 0])
    lower = 1 - threshold_at(error, 1 - probabilities[labels == 1])
    return Calibration(slope, bias, min(lower, THRESHOLD), max(upper, THRESHOLD), real, generated, data)


def platt(logits: Scores, labels: Labels) -> tuple[float, float]:
    """Return slope and bias for which `sigmoid(slope logit + bias)` fits the labels best.

    Newton's method on the likelihood of smoothed labels, (N+ + 1) / (N+ + 2) and 1 / (N- + 2), as Platt
    proposed, with the safeguards of Lin, Lin and Weng (2007, Machine Learning 68).

    Raises ValueError for logits that are not finite.
    """
    if not np.isfinite(logits).all():
        raise ValueError("a detector's logits must be finite; got NaN or infinity")
    centre, spread = float(logits.mean()), float(logits.std()) or 1.0
    x, positive = (logits - centre) / spread, int((labels == 1).sum())
    target = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2))
    place = np.array([0.0, math.log((positive + 1) / (len(labels) - positive + 1))])
    columns = np.stack([x, np.ones_like(x)])
    loss = _loss(place, columns, target)
    for _ in range(_ROUNDS):
        fitted = 1 / (1 + np.exp(-(place @ columns)))
        gradient = columns @ (fitted - target)
        if np.abs(gradient).max() < 1e-8 * len(labels):
            break
        curvature = (columns * (fitted * (1 - fitted))) @ columns.T + 1e-12 * np.eye(2)
        step, length = np.linalg.solve(curvature, gradient), 1.0
        while length > 1e-10 and _loss(place - length * step, columns, target) > loss:
            length /= 2
        place = place - length * step
        loss = _loss(place, columns, target)
    slope = float(place[0]) / spread
    return slope, float(place[1]) - slope * centre


def _loss(place: np.ndarray, columns: np.ndarray, target: np.ndarray) -> float:
    """The negative logarithm of the likelihood, without overflow."""
    value = place @ columns
    return float((np.logaddexp(0, value) - target * value).sum())


def at_base_rate(probability: float, share: float) -> float:
    """Return the probability that a picture is generated where `share` of all pictures are, not half.

    Raises ValueError for a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"a share lies between 0 and 1; got {share}")
    generated, real = probability * share, (1 - probability) * (1 - share)
    return generated / (generated + real)
