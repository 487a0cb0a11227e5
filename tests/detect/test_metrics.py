"""Figures of detectors against scikit-learn, closed forms and cases counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from detect.metrics import (
    auroc,
    average_precision,
    balanced_accuracy,
    bootstrap,
    brier,
    calibration_error,
    scorecard,
    share_above,
    threshold_at,
)

LABELS = np.array([0, 0, 0, 1, 1, 1])
SCORES = np.array([0.1, 0.4, 0.4, 0.4, 0.8, 0.3])


def test_six_pictures_with_ties_counted_by_hand():
    # 0.4 wins once and ties twice, 0.8 wins three times, 0.3 once: 1 + 2/2 + 3 + 1 of 9
    assert auroc(LABELS, SCORES) == pytest.approx(6 / 9)
    # ranked: 0.8 generated; the three ties, one generated; 0.3 generated; 0.1
    assert average_precision(LABELS, SCORES) == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)
    assert balanced_accuracy(LABELS, SCORES, 0.4) == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert balanced_accuracy(LABELS, SCORES, 0.41) == pytest.approx((1 + 1 / 3) / 2)
    assert share_above(SCORES, 0.4) == pytest.approx(4 / 6)
    assert brier(LABELS, SCORES) == pytest.approx(brier_score_loss(LABELS, SCORES))


def test_ties_do_not_depend_on_the_order_of_pictures():
    labels, scores = np.r_[np.zeros(46), np.ones(11)], np.zeros(57)
    assert auroc(labels, scores) == auroc(labels[::-1], scores) == 0.5


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=40))
def test_auroc_equals_scikit_learns(pairs):
    labels, scores = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    if len(set(labels)) < 2:
        with pytest.raises(ValueError, match="both real"):
            auroc(labels, scores)
        return
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


@given(st.integers(1, 400), st.floats(0.005, 0.6))
def test_a_threshold_keeps_its_false_positive_rate_and_could_not_be_lower(count, rate):
    real = np.random.default_rng(count).normal(size=count)
    threshold = threshold_at(rate, real)
    assert share_above(real, threshold) <= rate + 1e-9
    assert share_above(real, np.nextafter(threshold, -np.inf)) > rate - 1e-9


def test_thresholds_need_scores_and_a_rate():
    for rate, real in ((0, [0.5]), (1, [0.5]), (0.01, [])):
        with pytest.raises(ValueError, match=r"rate lies between|got none"):
            threshold_at(rate, np.array(real))


def test_honest_probabilities_have_no_calibration_error_and_shifted_ones_their_shift():
    generator = np.random.default_rng(0)
    probabilities = generator.uniform(0, 1, 60_000)
    labels = (generator.uniform(0, 1, 60_000) < probabilities).astype(int)
    assert calibration_error(labels, probabilities) < 0.01
    assert calibration_error(labels, probabilities / 2) == pytest.approx(0.25, abs=0.01)


def test_calibration_error_equals_a_loop_over_bins():
    generator = np.random.default_rng(1)
    probabilities, labels = generator.uniform(0, 1, 700), generator.integers(0, 2, 700)
    total = 0.0
    for low in range(15):
        inside = (probabilities >= low / 15) & (probabilities < (low + 1) / 15)
        if inside.any():
            total += inside.sum() / 700 * abs(probabilities[inside].mean() - labels[inside].mean())
    assert calibration_error(labels, probabilities) == pytest.approx(total)


def test_few_pictures_are_put_into_bins_of_equal_number():
    probabilities = np.array([0.011, 0.012, 0.013, 0.9])
    labels = np.array([0, 0, 1, 1])
    halves = abs(0.0115 - 0) + abs((0.013 + 0.9) / 2 - 1)
    assert calibration_error(labels, probabilities, bins=2) == pytest.approx(halves / 2)


def test_a_bootstrap_interval_is_as_wide_as_theory_says():
    generator = np.random.default_rng(0)
    labels = np.r_[np.zeros(200), np.ones(200)]
    scores = generator.normal(size=400) + labels
    low, high = bootstrap(auroc, labels, scores, rounds=400)
    area = auroc(labels, scores)
    # Hanley and McNeil (1982)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = np.sqrt((area * (1 - area) + 199 * (q1 - area**2) + 199 * (q2 - area**2)) / 200**2)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert low < area < high


def test_groups_of_copies_widen_the_interval():
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 40)
    scores = generator.normal(size=80) + labels
    groups = [str(number) for number in range(80)]
    few, many = (np.repeat(each, 10) for each in (labels, scores))
    alone = bootstrap(auroc, labels, scores, groups=groups, rounds=300)
    copied = bootstrap(auroc, few, many, groups=np.repeat(groups, 10), rounds=300)
    naive = bootstrap(auroc, few, many, rounds=300)
    assert copied[1] - copied[0] == pytest.approx(alone[1] - alone[0], rel=0.25)
    assert naive[1] - naive[0] < 0.5 * (copied[1] - copied[0])


def test_a_scorecard_holds_every_figure_and_judges_at_thresholds_from_elsewhere():
    generator = np.random.default_rng(0)
    labels = np.r_[np.zeros(300, int), np.ones(300, int)]
    probabilities = 1 / (1 + np.exp(-(generator.normal(size=600) + 3 * labels - 1.5)))
    calibration = 1 / (1 + np.exp(-(generator.normal(size=500) - 1.5)))
    card = scorecard(labels, probabilities, threshold=0.5, calibration_real=calibration, rounds=100)
    assert (card.real, card.generated) == (300, 300)
    assert card.auroc == auroc(labels, probabilities)
    assert card.auroc_interval[0] < card.auroc < card.auroc_interval[1]
    assert card.balanced_accuracy == pytest.approx((card.real_right + card.generated_right) / 2)
    one = threshold_at(0.01, calibration)
    assert card.tpr_at_1 == share_above(probabilities[300:], one)
    assert card.fpr_at_1 == share_above(probabilities[:300], one)
    assert card.tpr_at_1 <= card.tpr_at_5
    assert card.fpr_at_5 == pytest.approx(0.05, abs=0.04)
