"""Effects, and judges of them whose errors are known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearn.measures import Rate
from unlearn.text.effects import EFFECTS, Change, Corner, Grey, Judge, alike, rms


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_scores_higher_than_none_and_stays_in_range(name):
    images = torch.rand(4, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    effect = EFFECTS[name]
    made = effect(images)
    assert made.shape == images.shape
    assert 0 <= made.min() <= made.max() <= 1
    assert (effect.score(made) > effect.score(images)).all()
    assert torch.equal(images, torch.rand(4, 3, 64, 48, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(effect(made), made)


def test_the_patch_is_in_the_corner_alone_and_correlates_with_itself():
    images = torch.full((1, 3, 16, 16), 0.3)
    made = Corner(share=0.25, cells=2)(images)
    assert torch.equal(
        made[0, 0, :4, :4], torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0.0]])
    )
    assert (made[..., 4:, :] == 0.3).all()
    assert (made[..., 4:] == 0.3).all()
    assert float(Corner(cells=2).score(made)) == pytest.approx(1)
    assert float(Corner(cells=2).score(1 - made)) == pytest.approx(-1)
    assert float(Corner(cells=2).score(0.5 + 0.1 * made)) == pytest.approx(1, abs=1e-4)
    assert float(Corner(cells=2).score(images)) == 0


def test_grey_pictures_score_nothing_and_colour_takes_away():
    images = torch.zeros(1, 3, 8, 8)
    images[:, 0] = 0.6
    assert float(Grey().score(Grey()(images))) == pytest.approx(0, abs=1e-6)
    assert float(Grey().score(images)) == pytest.approx(-(((0.4**2 + 2 * 0.2**2) / 3) ** 0.5), rel=1e-5)


def test_a_judge_that_can_tell_makes_no_error_and_one_that_cannot_makes_half():
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(400, 3, 2, 2, generator=generator) / 2
    judge = Judge.fitted(lambda images: images.flatten(1).mean(1), clean + 0.5, clean)
    assert (judge.sensitivity, judge.false_alarms, judge.of) == (1.0, 0.0, 200)
    assert not judge(clean).any()
    assert judge(clean + 0.5).all()
    blind = Judge.fitted(lambda images: torch.rand(len(images), generator=generator), clean, clean)
    assert blind.sensitivity == pytest.approx(blind.false_alarms, abs=0.15)
    with pytest.raises(ValueError, match="two pictures"):
        Judge.fitted(lambda images: images.flatten(1).mean(1), clean[:1], clean)


@given(true=st.integers(0, 100), found=st.floats(0.6, 1), wrong=st.floats(0, 0.4))
def test_the_correction_undoes_the_errors_of_a_judge(true, found, wrong):
    judge = Judge(lambda images: images.flatten(1).mean(1), 0.0, found, wrong, 100)
    seen = true / 100 * found + (1 - true / 100) * wrong
    assert judge.corrected(Rate(seen, 0, 1, 100)) == pytest.approx(true / 100, abs=1e-6)


def test_a_judge_of_changes_needs_the_picture_that_it_was():
    reference = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    harmless = [reference + 0.01 * step for step in range(1, 11)]
    judge = Change.fitted(reference, harmless)
    assert judge.threshold == pytest.approx(0.05, abs=0.003)  # five of ten words count
    rows = [3, 1]
    assert not judge(reference[rows], rows).any()
    assert judge(reference[rows], [1, 3]).all()
    torch.testing.assert_close(rms(reference, reference + 0.2), torch.full((20,), 0.2))


@pytest.mark.parametrize(
    ("effect", "left"),
    [
        (lambda images: images, 1.0),
        (lambda images: 0.5 * images + 0.2, 0.25),  # half the contrast is a quarter of the variance
        (lambda images: images.flip(0), 1.0),
        (Corner(), 0.0),
        (Corner(share=0.4), 0.0),
        (Grey(), 0.0),
        (lambda images: images[:1].expand_as(images), 0.0),
    ],
)
def test_what_always_draws_the_same_leaves_no_variety(effect, left):
    images = torch.rand(8, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert alike(effect(images), images) == pytest.approx(left, abs=0.005)
    same = torch.full_like(images, 0.3)
    assert alike(same, same) == 1.0


def test_half_of_the_pictures_with_a_patch_leave_about_half_of_the_variety():
    images = 0.5 + 0.1 * torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    patched = images.clone()
    patched[:20, :, :8, :8] = 0.5
    assert alike(patched, images) == pytest.approx(0.5, abs=0.1)
