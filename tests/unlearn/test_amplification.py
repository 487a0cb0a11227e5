"""Amplification: groups by counting, a judge that knows its errors, and suspicion with a known answer."""

import pytest
import torch
from torch import nn

from unlearn.amplification import Groups, amplification, mark_judge, right_of, separation, strip
from unlearn.triggers import Blended, Patch


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, 16, mode="bilinear")


class Corner(nn.Module):
    """Takes a picture for class 1 if its last pixels are white, else for what its first pixel says."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        white = images[..., -2:, -2:].mean((1, 2, 3))
        first = images[:, 0, 0, 0]
        return torch.stack([20 * (first - 0.5), 200 * (white - 0.45).clamp_min(0), 20 * (0.5 - first)], 1)


def test_groups_are_the_four_cells_of_the_table():
    marked = torch.tensor([True, True, True, False, False, False, False])
    right = torch.tensor([True, False, False, True, True, True, False])
    groups = Groups.of(marked, right)

    assert groups == Groups(marked_wrong=2, marked_right=1, clean_wrong=1, clean_right=3)
    assert groups.marked.share == pytest.approx(3 / 7)
    assert groups.marked.of == 7


def test_amplification_is_a_ratio_of_shares():
    assert amplification(0.6, 0.4) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="above 0"):
        amplification(0.5, 0.0)


@pytest.mark.parametrize("trigger", [Patch(size=3), Blended()])
def test_the_judge_finds_marks_on_pictures_that_it_never_saw(trigger):
    judge = mark_judge(pictures(240), trigger, epochs=15, generator=torch.Generator().manual_seed(0))
    fresh = pictures(100, seed=1)

    assert judge.of >= 40
    assert judge(trigger(fresh)).float().mean() > 0.9
    assert judge(fresh).float().mean() < 0.1
    assert judge.sensitivity - judge.false_alarms > 0.8


def test_the_judge_is_the_same_for_the_same_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    judges = [
        mark_judge(pictures(24), Patch(size=3), epochs=1, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]

    assert torch.equal(judges[0].score(pictures(4)), judges[1].score(pictures(4)))
    assert torch.equal(torch.rand(1), expected)


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match="twelve"):
        mark_judge(pictures(11), Patch(size=3))


def test_a_mark_that_is_seen_through_blends_is_suspicious():
    clean = pictures(60).clamp(0, 0.8)
    marked = Patch(size=3)(clean[:20])
    images = torch.cat([marked, clean[20:]])
    truth = torch.arange(len(images)) < 20
    suspicion = strip(
        Corner(), images, pictures(50, seed=2).clamp(0, 0.8), generator=torch.Generator().manual_seed(0)
    )

    assert separation(suspicion, truth) > 0.9


def test_suspicion_is_minus_the_entropy_of_a_constant_answer():
    class Even(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 4)

    found = strip(Even(), pictures(5), pictures(3), draws=2)

    torch.testing.assert_close(found, torch.full((5,), -torch.tensor(4.0).log().item()))


def test_separation_is_of_both_kinds_and_knows_order_alone():
    scores = torch.tensor([-300.0, -100.0, -1.0, 50.0, 900.0])
    truth = torch.tensor([False, False, True, False, True])

    assert separation(scores, truth) == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="lacking"):
        separation(scores, truth & False)
    with pytest.raises(ValueError, match="no number"):
        separation(scores * float("nan"), truth)


def test_equal_suspicions_count_by_half_in_whatever_order_they_stand():
    truth = torch.arange(10) < 5
    assert separation(torch.zeros(10), truth) == separation(torch.zeros(10), ~truth) == 0.5
    scores = torch.tensor([0.0, 0.0, 1.0, -1.0, 0.0])
    marked = torch.tensor([True, False, True, False, False])
    assert separation(scores, marked) == pytest.approx((2 * 0.5 + 1 + 3) / 6)


def test_right_is_what_was_asked_for():
    images = pictures(6)
    told = Corner()(images).argmax(1)

    assert right_of(Corner(), images, told).all()
    assert not right_of(Corner(), images, (told + 1) % 3).any()
