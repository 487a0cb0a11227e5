"""Pieces, outlines and fillings of masks, compared with scipy's morphology."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from imaging.contours import filled, outline, pieces

CORNERS_TOUCH = np.ones((3, 3))


@st.composite
def regions(draw):
    """Regions of any size: specks, clumps and nearly full frames."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    share, seed = draw(st.floats(0.05, 0.95)), draw(st.integers(0, 2**32))
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share


@given(regions())
def test_pieces_are_the_connected_components_in_their_tightest_boxes(region):
    labels, count = ndimage.label(region.numpy(), CORNERS_TOUCH)
    found = pieces(region)
    assert len(found) == count
    for number, (piece, box) in enumerate(zip(found, ndimage.find_objects(labels), strict=True), 1):
        assert (slice(piece.box.top, piece.box.bottom), slice(piece.box.left, piece.box.right)) == box
        assert np.array_equal(piece.region.numpy(), labels[box] == number)
        assert piece.area == (labels == number).sum()


@given(regions())
def test_an_outline_is_the_border_without_holes_and_encloses_the_piece(region):
    cross = ndimage.generate_binary_structure(2, 1)
    for piece in pieces(region):
        solid = ndimage.binary_fill_holes(piece.region.numpy())
        border = solid & ~ndimage.binary_erosion(solid, cross)
        points = outline(piece.region)
        drawn = torch.zeros_like(piece.region)
        drawn[points[:, 1], points[:, 0]] = True
        assert np.array_equal(drawn.numpy(), border)
        assert np.array_equal(filled(points, *piece.region.shape).numpy(), solid)


@given(regions())
def test_neighbours_in_an_outline_touch_and_it_is_closed(region):
    for piece in pieces(region):
        points = outline(piece.region)
        steps = (points - points.roll(1, 0)).abs().amax(1)
        assert steps.max() <= 1
        assert len(points) == 1 or steps.min() == 1


def test_an_outline_goes_clockwise_from_the_first_pixel():
    square = torch.ones(3, 3, dtype=torch.bool)
    around = [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [1, 2], [0, 2], [0, 1]]
    assert outline(square).tolist() == around


def test_nothing_has_no_pieces_and_no_outline():
    nothing = torch.zeros(5, 7, dtype=torch.bool)
    assert pieces(nothing) == []
    with pytest.raises(ValueError, match="an empty region has no outline"):
        outline(nothing)


def test_points_outside_the_frame_are_left_out_of_the_filling():
    triangle = torch.tensor([[-5, 2], [2, -5], [9, 2]])
    assert torch.equal(filled(triangle, 4, 5), torch.tensor([[True] * 5] * 3 + [[False] * 5]))
