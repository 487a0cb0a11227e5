"""Random shrinking of masks: always inside, never gone, in every piece, and reproducible."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn.functional import interpolate

from protect.masks import shrunk, smoothed


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ellipse(height, width, centre, axes):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows - centre[0]) / axes[0]) ** 2 + ((columns - centre[1]) / axes[1]) ** 2 <= 1


@st.composite
def masks(draw):
    """Blobs, rings, specks and everything: what smooth random fields leave above a threshold."""
    height, width = draw(st.integers(8, 70)), draw(st.integers(8, 70))
    grain, level = draw(st.integers(2, 12)), draw(st.floats(-1.5, 2.5))
    field = torch.randn(1, 1, grain, grain, generator=seeded(draw(st.integers(0, 2**32))))
    mask = interpolate(field, size=(height, width), mode="bilinear") < level
    return mask | (mask.sum() == 0)


@given(masks(), st.integers(0, 2**32))
def test_a_shrunk_mask_is_a_part_of_the_mask_and_no_piece_is_gone(mask, seed):
    kept = shrunk(mask, generator=seeded(seed))
    assert not (kept & ~mask).any()
    labels, count = ndimage.label(mask[0, 0].numpy(), np.ones((3, 3)))
    assert set(np.unique(labels[kept[0, 0].numpy()])) == set(range(1, count + 1))


def test_it_does_shrink_by_margins_that_differ():
    mask = ellipse(128, 128, (60, 64), (40, 30))[None, None]
    generator = seeded()
    shares = torch.tensor([float(shrunk(mask, generator=generator).sum() / mask.sum()) for _ in range(40)])
    assert shares.max() < 1
    assert shares.min() < 0.5
    assert 0.4 < shares.mean() < 0.95
    assert len(shares.unique()) > 30


def test_each_piece_shrinks_by_a_margin_of_its_own():
    one = ellipse(100, 100, (50, 50), (30, 30))
    for seed in range(6):
        left, right = shrunk(torch.cat([one, one], 1)[None, None], generator=seeded(seed))[0, 0].chunk(2, 1)
        assert left.any()
        assert right.any()
        assert not torch.equal(left, right)


def test_a_piece_in_the_hole_of_another_is_a_piece_of_its_own():
    ring = ellipse(120, 120, (60, 60), (50, 50)) & ~ellipse(120, 120, (60, 60), (30, 30))
    island = ellipse(120, 120, (60, 60), (12, 12))
    for seed in range(8):
        kept = shrunk((ring | island)[None, None], generator=seeded(seed))[0, 0]
        assert (kept & ring).any()
        assert (kept & island).any()


def test_pieces_smaller_than_a_latent_entry_stay_whole():
    mask = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    mask[..., 3:10, 4:13] = True  # 63 pixels
    mask[..., 30, 30] = True
    assert torch.equal(shrunk(mask, generator=seeded()), mask)


def test_the_same_seed_gives_the_same_mask_and_the_next_call_another():
    mask, generator = ellipse(90, 90, (45, 45), (30, 40))[None, None], seeded(3)
    first, second = shrunk(mask, generator=generator), shrunk(mask, generator=generator)
    assert torch.equal(shrunk(mask, generator=seeded(3)), first)
    assert not torch.equal(first, second)


def test_a_masks_margin_does_not_depend_on_the_masks_beside_it():
    one, other = ellipse(80, 80, (40, 40), (25, 30)), ellipse(80, 80, (30, 50), (20, 20))
    both = torch.stack([one, other])[:, None]
    together = shrunk(both, generator=seeded())
    alone = torch.cat([shrunk(both[i : i + 1], generator=seeded()) for i in range(2)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(("count", "sigma"), [(9, 2.0), (40, 3.0), (41, 30.0)])
def test_smoothing_goes_round_a_closed_curve(count, sigma):
    """The same as blurring many turns of the curve laid end to end and looking at the middle one."""
    values = torch.randn(count, 2, generator=seeded(), dtype=torch.float64)
    turns = 2 * math.ceil(8 * sigma / count) + 1
    long = ndimage.gaussian_filter1d(values.repeat(turns, 1).numpy(), sigma, axis=0, truncate=8)
    middle = torch.from_numpy(long)[turns // 2 * count : (turns // 2 + 1) * count]
    torch.testing.assert_close(smoothed(values, sigma), middle, atol=1e-6, rtol=0)


def test_smoothing_keeps_the_mean():
    values = torch.randn(33, 2, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(smoothed(values, 4.0).mean(0), values.mean(0))
