"""Tiles cover every pixel, their weights sum to one, and merged perturbations stay in the ball."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn import functional as F

from imaging.tiles import crop_padding, merge, pad_to_multiple, plan_tiles, split


@st.composite
def plans(draw):
    multiple = draw(st.sampled_from([1, 4, 8]))
    size = multiple * draw(st.integers(1, 6))
    overlap = draw(st.integers(0, size // 2))
    return plan_tiles(
        draw(st.integers(1, 90)), draw(st.integers(1, 90)), size=size, overlap=overlap, multiple=multiple
    ), size


@given(plans())
def test_weights_are_positive_and_sum_to_one_everywhere(planned):
    plan, _ = planned
    total = torch.zeros(plan.height, plan.width)
    for index, box in enumerate(plan.boxes):
        weights = plan.weights(index)
        assert weights.shape == (box.height, box.width)
        assert (weights > 0).all()
        total[box.top : box.bottom, box.left : box.right] += weights
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


@given(plans())
def test_tiles_have_the_asked_size_or_that_of_a_smaller_picture(planned):
    plan, size = planned
    for box in plan.boxes:
        assert 0 <= box.top < box.bottom <= plan.height
        assert 0 <= box.left < box.right <= plan.width
        assert (box.height, box.width) == (min(size, plan.height), min(size, plan.width))


@given(plans(), st.integers(0, 99))
def test_splitting_and_merging_gives_the_images_back(planned, seed):
    plan, _ = planned
    images = torch.rand(2, 3, plan.height, plan.width, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(merge(split(images, plan), plan), images, rtol=0, atol=1e-6)


@given(plans(), st.integers(0, 99))
def test_merged_perturbations_stay_within_eps(planned, seed):
    plan, _ = planned
    eps, generator = 8 / 255, torch.Generator().manual_seed(seed)
    signs = (
        (torch.randint(0, 2, (1, 3, box.height, box.width), generator=generator) * 2.0 - 1) * eps
        for box in plan.boxes
    )
    assert merge(signs, plan).abs().max() <= eps * (1 + 1e-5)


def test_neighbours_overlap_by_the_asked_amount_at_least():
    plan = plan_tiles(100, 100, size=32, overlap=8)
    tops = sorted({box.top for box in plan.boxes})
    assert tops == [0, 24, 48, 68]


def test_a_local_operation_in_tiles_equals_the_whole_away_from_the_margins():
    images = torch.rand(1, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    plan = plan_tiles(70, 90, size=40, overlap=16)
    whole = F.avg_pool2d(images, 3, 1, 1)
    tiled = merge((F.avg_pool2d(tile, 3, 1, 1) for tile in split(images, plan)), plan)
    inside = torch.ones(70, 90, dtype=torch.bool)
    for box in plan.boxes:  # only rows and columns at a tile's own edge see its padding
        inside[[box.top, box.bottom - 1], box.left : box.right] = False
        inside[box.top : box.bottom, [box.left, box.right - 1]] = False
    torch.testing.assert_close(tiled[..., inside], whole[..., inside])


def test_merging_draws_one_tile_at_a_time():
    plan = plan_tiles(64, 64, size=32, overlap=8)
    alive = 0

    def tiles():
        nonlocal alive
        for box in plan.boxes:
            alive += 1
            yield torch.zeros(1, 3, box.height, box.width)
            alive -= 1
            assert alive == 0

    assert merge(tiles(), plan).shape == (1, 3, 64, 64)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24))
def test_padding_reaches_the_multiple_and_can_be_cropped_again(height, width, multiple):
    images = torch.rand(2, 3, height, width)
    padded = pad_to_multiple(images, multiple)
    assert padded.shape[-2] % multiple == 0 == padded.shape[-1] % multiple
    assert padded.shape[-2] - height < multiple
    assert torch.equal(crop_padding(padded, height, width), images)


def test_padding_mirrors_the_border():
    images = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 3, 2, 6)
    assert pad_to_multiple(images, 4)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 4, 3]


def test_impossible_plans_and_foreign_tiles_are_refused():
    with pytest.raises(ValueError, match="multiple of 8, got 30"):
        plan_tiles(64, 64, size=30, overlap=0, multiple=8)
    with pytest.raises(ValueError, match="half of the tile size 32, got 17"):
        plan_tiles(64, 64, size=32, overlap=17)
    with pytest.raises(ValueError, match="0 x 64"):
        plan_tiles(0, 64, size=32, overlap=8)
    plan = plan_tiles(64, 64, size=32, overlap=8)
    with pytest.raises(ValueError, match="64 x 64 pixels, got images of 32 x 32"):
        next(split(torch.zeros(1, 3, 32, 32), plan))
    with pytest.raises(ValueError, match="tile 0 must be 32 x 32 pixels, got 16 x 32"):
        merge([torch.zeros(1, 3, 16, 32)] * len(plan.boxes), plan)
    with pytest.raises(ValueError, match="zip"):
        merge([torch.zeros(1, 3, 32, 32)], plan)


@given(st.integers(1, 200), st.integers(2, 6), st.integers(0, 3), st.integers(0, 99))
def test_tiles_on_a_grid_start_on_it_and_still_cover_and_overlap(length, size, overlap, seed):
    overlap = min(overlap, size // 2) * 8
    plan = plan_tiles(length, length, size=size * 8, overlap=overlap, multiple=8, grid=8)
    images = torch.rand(1, 3, length, length, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(merge(split(images, plan), plan), images, rtol=0, atol=1e-6)
    for row in plan.rows:
        assert row.start % 8 == 0
        assert row.stop - row.start in range(min(size * 8, length) - 7, size * 8 + 1)
    for one, other in zip(plan.rows, plan.rows[1:], strict=False):
        assert one.stop - other.start >= overlap


def test_a_grid_that_does_not_divide_the_tiles_is_refused():
    with pytest.raises(ValueError, match="the grid must divide the tile size 32 and the overlap 4, got 8"):
        plan_tiles(40, 40, size=32, overlap=4, grid=8)
