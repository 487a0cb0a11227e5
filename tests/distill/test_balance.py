"""The balances of two teachers, worked by hand."""

import math

import pytest
import torch

from distill.balance import EntropyBalance, LossBalance


def means(robust, natural):
    return {"robust": torch.tensor(robust), "natural": torch.tensor(natural)}


def test_equal_relative_losses_leave_the_weights_at_a_half():
    balance = LossBalance()
    for factor in (1.0, 0.7, 0.2):
        weights = balance.update(means(3.0 * factor, 0.4 * factor))
        assert weights["natural"] == weights["robust"] == 0.5


def test_a_loss_that_doubles_relatively_gains_a_fortieth_of_the_way():
    balance = LossBalance()
    balance.update(means(3.0, 0.4))
    weights = balance.update(means(3.0, 0.8))
    assert float(weights["natural"]) == pytest.approx(0.5 + 0.025 * (2 / 3 - 0.5), abs=1e-6)
    assert float(weights["robust"] + weights["natural"]) == pytest.approx(1, abs=1e-6)


def test_a_lower_learning_rate_moves_the_weights_less():
    balance = LossBalance()
    balance.update(means(3.0, 0.4))
    weights = balance.update(means(3.0, 0.8), decay=0.1)
    assert float(weights["natural"]) == pytest.approx(0.5 + 0.0025 * (2 / 3 - 0.5), abs=1e-6)


def test_both_published_rules_are_the_same_rule():
    """MTARD's moving average of one weight, and the clamped, normalised pair of B-MTARD, as loops."""
    generator = torch.Generator().manual_seed(0)
    balance, rate = LossBalance(), 0.025
    first, mtard, pair = None, 0.5, [0.5, 0.5]
    for _ in range(50):
        robust, natural = (torch.rand(2, generator=generator) + 0.1).tolist()
        weights = balance.update(means(robust, natural))
        first = first or (robust, natural)
        relative = [robust / first[0], natural / first[1]]
        mtard -= rate * (mtard - relative[1] / sum(relative))
        mean = sum(relative) / 2
        relative = [value / mean for value in relative]
        pair = [
            max(w - rate * (w - value / sum(relative)), 0.0) for w, value in zip(pair, relative, strict=True)
        ]
        pair = [w / sum(pair) for w in pair]
    assert float(weights["natural"]) == pytest.approx(mtard, abs=1e-5)
    assert float(weights["natural"]) == pytest.approx(pair[1], abs=1e-5)
    assert abs(mtard - 0.5) > 0.01


def test_losses_are_measured_against_the_first_step_of_all_also_after_a_resumption():
    balance = LossBalance()
    balance.update(means(3.0, 0.4))
    resumed = LossBalance()
    resumed.load_state_dict(balance.state_dict())
    again, same = balance.update(means(1.0, 0.3)), resumed.update(means(1.0, 0.3))
    assert again == same
    assert LossBalance().update(means(1.0, 0.3))["natural"] == 0.5 != same["natural"]


def test_weights_that_were_given_do_not_change_afterwards():
    balance = LossBalance()
    given = balance.update(means(3.0, 0.4))
    balance.update(means(0.1, 0.9))
    assert given["natural"] == 0.5


def test_the_more_uncertain_teacher_cools_and_the_other_warms_by_a_thousandth():
    balance = EntropyBalance()
    balance.temperatures.fill_(2.0)
    balance.update(torch.tensor(1.2), torch.tensor(0.3))
    assert balance.temperatures.tolist() == pytest.approx([1.999, 2.001], abs=1e-6)
    balance.update(torch.tensor(0.2), torch.tensor(0.3), decay=0.1)
    assert balance.temperatures.tolist() == pytest.approx([1.9991, 2.0009], abs=1e-6)


def test_temperatures_stay_between_one_and_ten():
    balance = EntropyBalance(rate=4.0)
    for _ in range(5):
        balance.update(torch.tensor(1.2), torch.tensor(0.3))
    assert balance.temperatures.tolist() == [1.0, 10.0]


def test_equal_entropies_leave_the_temperatures():
    balance = EntropyBalance()
    balance.update(torch.tensor(0.7), torch.tensor(0.7))
    assert balance.temperatures.tolist() == [1.0, 1.0]


def test_a_confident_teacher_is_warmed_until_the_entropies_meet():
    """Two logits: the entropy of sigmoid(z / t) is known, and so is where the temperatures meet."""

    def entropy(z, t):
        p = 1 / (1 + math.exp(-z / t))
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    balance = EntropyBalance(rate=0.01)
    for _ in range(400):
        robust, natural = (
            entropy(z, float(t)) for z, t in zip((1.5, 4.5), balance.temperatures, strict=True)
        )
        balance.update(torch.tensor(robust), torch.tensor(natural))
    assert balance.temperatures.tolist() == pytest.approx([1.0, 3.0], abs=0.03)
