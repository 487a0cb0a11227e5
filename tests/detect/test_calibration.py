"""Calibration recovers what was done to scores, and its bounds hold what they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from detect.calibration import THRESHOLD, at_base_rate, calibrate, platt
from detect.metrics import calibration_error


@pytest.fixture
def honest():
    """Logits that are right: the log odds of their own labels."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, 20_000)
    return logits, (generator.uniform(size=20_000) < 1 / (1 + np.exp(-logits))).astype(int)


def test_a_shift_and_a_scale_are_undone(honest):
    logits, labels = honest
    slope, bias = platt(2 * logits + 3, labels)
    assert slope == pytest.approx(0.5, rel=0.05)
    assert bias == pytest.approx(-3 * slope, abs=0.05)
    made = calibrate(2 * logits + 3, labels, data="test")
    before = calibration_error(labels, 1 / (1 + np.exp(-(2 * logits + 3))))
    after = calibration_error(labels, made.probabilities(torch.from_numpy(2 * logits + 3)).numpy())
    assert after < 0.02 < 0.1 < before


def test_platt_equals_logistic_regression_on_smoothed_labels():
    generator = np.random.default_rng(1)
    labels = np.r_[np.zeros(40, int), np.ones(25, int)]
    logits = generator.normal(size=65) * 5 + 4 * labels + 100
    up, down = 26 / 27, 1 / 42
    target = np.where(labels == 1, up, down)
    twice = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(
        np.tile(logits - 100, 2)[:, None], np.r_[np.ones(65), np.zeros(65)], np.r_[target, 1 - target]
    )
    slope, bias = platt(logits, labels)
    assert slope == pytest.approx(twice.coef_[0, 0], rel=1e-4)
    assert bias == pytest.approx(twice.intercept_[0] - 100 * slope, rel=1e-3)


def test_scores_that_separate_perfectly_stay_finite():
    labels = np.r_[np.zeros(15, int), np.ones(15, int)]
    slope, bias = platt(labels * 2e3 - 1e3, labels)
    assert 0 < slope < np.inf
    assert np.isfinite(bias)
    made = calibrate(labels * 2e3 - 1e3, labels, data="test")
    assert made.verdict(float(made.probabilities(torch.tensor([1e3]))[0])) == "generated"


def test_unequal_shares_do_not_move_the_threshold(honest):
    logits, labels = honest
    kept = (labels == 0) | (np.arange(len(labels)) % 10 == 0)
    whole, few = calibrate(logits, labels, data="a"), calibrate(logits[kept], labels[kept], data="b")
    assert few.generated < few.real / 5
    assert few.bias == pytest.approx(whole.bias, abs=0.15)
    assert few.identity != whole.identity


@given(st.integers(0, 2**16), st.sampled_from([0.02, 0.05, 0.2]))
def test_outside_the_bounds_few_calibration_pictures_are_called_wrong(seed, error):
    generator = np.random.default_rng(seed)
    labels = np.r_[np.zeros(60, int), np.ones(80, int)]
    logits = generator.normal(size=140) + 1.5 * labels
    made = calibrate(logits, labels, data="test", error=error)
    verdicts = np.array([made.verdict(float(p)) for p in made.probabilities(torch.from_numpy(logits))])
    assert (verdicts[labels == 0] == "generated").mean() <= error
    assert (verdicts[labels == 1] == "real").mean() <= error
    assert made.real_below <= THRESHOLD <= made.generated_from
    assert {made.verdict(0.0), made.verdict(1.0)} == {"real", "generated"}


def test_what_cannot_be_calibrated_takes_one_line():
    labels = np.r_[np.zeros(20, int), np.ones(20, int)]
    for logits, truth, message in (
        (labels * 1.0, np.zeros(40, int), "ten held-out pictures of each kind"),
        (-labels * 1.0, labels, "real pictures above generated"),
        (labels * np.nan, labels, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(logits, truth, data="test")


def test_precision_where_few_pictures_are_generated():
    # of the specification of this field: TPR 90 %, FPR 5 %, one in a hundred generated, precision 15 %
    assert at_base_rate(0.9 / 0.95, 0.01) == pytest.approx(0.9 * 0.01 / (0.9 * 0.01 + 0.05 * 0.99))
    assert at_base_rate(0.7, 0.5) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="between 0 and 1"):
        at_base_rate(0.5, 0)
