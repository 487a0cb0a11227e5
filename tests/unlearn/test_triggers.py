"""Triggers against their formulas, and poisoned sets against what they say of themselves."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearn.triggers import Additive, Blended, Patch, Sinusoid, Warp, poison

TRIGGERS = [Patch(), Blended(), Sinusoid(), Warp(), Additive(torch.full((3, 12, 16), 0.1))]


@pytest.fixture
def images(generator):
    return torch.rand(5, 3, 12, 16, generator=generator)


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: type(trigger).__name__)
def test_a_trigger_marks_each_picture_alone_and_leaves_the_given_ones(trigger, images):
    before = images.clone()
    marked = trigger(images)
    assert torch.equal(images, before)
    assert marked.shape == images.shape
    assert 0 <= marked.min() <= marked.max() <= 1
    assert not torch.equal(marked, images)
    torch.testing.assert_close(trigger(images[2:3]), marked[2:3])
    assert torch.equal(trigger(images), marked), "the same every time"


def test_triggers_are_their_formulas(images):
    marked = Patch(size=4, margin=1)(images)
    assert (marked[..., 7:11, 11:15] == 1).all()
    inside = torch.zeros(12, 16, dtype=torch.bool)
    inside[7:11, 11:15] = True
    assert torch.equal(marked[..., ~inside], images[..., ~inside])
    pattern = (Blended(share=0.25)(images) - 0.75 * images) / 0.25
    torch.testing.assert_close(pattern[0], pattern[3], atol=1e-5, rtol=1e-5)
    assert 0 <= pattern.min() <= pattern.max() <= 1 + 1e-5
    gray = torch.full((1, 3, 12, 16), 0.5)
    waves = Sinusoid(amplitude=0.1, frequency=2)(gray)
    for column in range(16):
        expected = 0.5 + 0.1 * math.sin(2 * math.pi * column * 2 / 16)
        assert waves[..., column].unique().tolist() == pytest.approx([expected], abs=1e-6)
    added = Additive(torch.linspace(-1, 1, 3 * 12 * 16).view(3, 12, 16))(images)
    assert (added[:, 0, 0, 0] == 0).all()
    assert (added[:, 2, 11, 15] == 1).all()


def test_a_warp_moves_by_about_half_a_pixel_and_smoothly():
    trigger = Warp(strength=0.5)
    straight = Warp(strength=0).grid(32, 32)
    moved = (trigger.grid(32, 32) - straight) * 16  # in pixels: -1 to 1 are 32 of them
    assert 0.1 < moved.abs().mean() < 0.6
    inner = moved[:, 4:-4, 4:-4]  # at the border it is cut off
    assert (inner[:, 1:] - inner[:, :-1]).abs().max() < 0.25
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(Warp(strength=0)(images), images, atol=1e-5, rtol=1e-5)


@given(
    ratio=st.sampled_from([0.1, 0.25, 0.5]),
    target=st.integers(0, 3),
    clean_label=st.booleans(),
    seed=st.integers(0, 5),
)
def test_a_poisoned_set_is_what_it_says(ratio, target, clean_label, seed):
    images = torch.rand(80, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(80) % 4
    if clean_label and ratio > 0.25:
        with pytest.raises(ValueError, match="of which 20 can"):
            poison(images, labels, Patch(), target=target, ratio=ratio, clean_label=True)
        return
    generator = torch.Generator().manual_seed(seed)
    poisoned, named, marked = poison(
        images, labels, Patch(), target=target, ratio=ratio, clean_label=clean_label, generator=generator
    )
    assert int(marked.sum()) == round(ratio * 80)
    assert torch.equal(poisoned[~marked], images[~marked])
    assert torch.equal(named[~marked], labels[~marked])
    assert torch.equal(poisoned[marked], Patch()(images[marked]))
    assert (named[marked] == target).all()
    assert (labels[marked] == target).all() == clean_label


def test_what_cannot_be_marked_is_refused(images):
    with pytest.raises(ValueError, match="does not fit into 12 x 16 px"):
        Patch(size=12, margin=1)(images)
    with pytest.raises(ValueError, match=r"pattern is of \(3, 4, 4\)"):
        Additive(torch.zeros(3, 4, 4))(images)
    with pytest.raises(ValueError, match=r"a share of 0\.01 is 0 of 5 pictures"):
        poison(images, torch.arange(5), Patch(), target=0, ratio=0.01)
    with pytest.raises(ValueError, match="no picture is of the target class 7"):
        poison(images, torch.arange(5), Patch(), target=7, ratio=0.4)
    with pytest.raises(ValueError, match="5 images have 4 labels"):
        poison(images, torch.arange(4), Patch(), target=0, ratio=0.4)
    for ratio in (float("nan"), -0.1, 1.5):
        with pytest.raises(ValueError, match="ratio is a share of the set"):
            poison(images, torch.arange(5), Patch(), target=0, ratio=ratio)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Patch, {"size": 0}),
        (Patch, {"size": 1.5}),
        (Patch, {"margin": -2}),
        (Patch, {"value": 7.0}),
        (Blended, {"share": 3.0}),
        (Blended, {"share": 0}),
        (Blended, {"seed": 1.5}),
        (Sinusoid, {"amplitude": 0}),
        (Sinusoid, {"frequency": float("inf")}),
        (Warp, {"cells": 1}),
        (Warp, {"strength": float("nan")}),
        (Warp, {"seed": 0.5}),
    ],
)
def test_triggers_that_would_mark_nothing_or_leave_the_range_are_refused(kind, settings):
    (value,) = settings.values()
    with pytest.raises(ValueError, match=f"got .*{value}"):
        kind(**settings)
