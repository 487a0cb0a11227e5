"""Picture: exact integers inside, floats on demand, hidden pixels untouched."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from imaging.picture import Picture
from imaging.tiles import Box


def picture(frames: int = 1, *, deep: bool = False, alpha: bool = False) -> Picture:
    generator = torch.Generator().manual_seed(frames)
    levels, dtype = (65535, torch.uint16) if deep else (255, torch.uint8)
    values = torch.randint(0, levels + 1, (frames, 4, 40, 50), generator=generator)
    values[:, 3, :15] = 0
    values = values.to(dtype)
    return Picture(values[:, :3], values[:, 3:] if alpha else None, notes=("a note",))


def alpha_of(picture: Picture) -> torch.Tensor:
    assert picture.alpha is not None
    return picture.alpha


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("frames", [1, 3])
def test_pixels_are_the_integers_over_the_levels_and_come_back_exactly(deep, frames):
    original = picture(frames, deep=deep)
    assert original.pixels.dtype == torch.float32
    assert original.levels == (65535 if deep else 255)
    assert torch.equal((original.pixels.double() * original.levels).round().int(), original.integers.int())
    assert torch.equal(original.with_pixels(original.pixels).integers, original.integers)
    assert original.with_pixels(original.pixels).notes == ("a note",)


@pytest.mark.parametrize("deep", [False, True])
def test_new_pixels_never_reach_fully_transparent_places(deep):
    original = picture(deep=deep, alpha=True)
    changed = original.with_pixels(1 - original.pixels)
    hidden = (alpha_of(original) == 0).expand_as(original.integers)
    assert torch.equal(changed.integers[hidden], original.integers[hidden])
    assert (changed.integers[~hidden] != original.integers[~hidden]).all()
    assert torch.equal(alpha_of(changed), alpha_of(original))


def test_the_visible_mask_is_zero_exactly_where_alpha_is():
    mask = picture(2, alpha=True).visible_mask
    assert mask.shape == (2, 1, 40, 50)
    assert torch.equal(mask == 0, alpha_of(picture(2, alpha=True)) == 0)
    assert torch.equal(picture(2).visible_mask, torch.ones(2, 1, 40, 50))


def test_a_region_shares_memory_and_keeps_the_metadata():
    original = picture(2, alpha=True)
    region = original.region(Box(3, 5, 20, 31))
    assert (region.height, region.width, region.frames, region.notes) == (17, 26, 2, ("a note",))
    assert torch.equal(region.pixels, original.pixels[..., 3:20, 5:31])
    assert torch.equal(region.visible_mask, original.visible_mask[..., 3:20, 5:31])
    assert region.integers.untyped_storage().data_ptr() == original.integers.untyped_storage().data_ptr()


@given(st.floats(-0.25, 1.25, width=32))
@settings(max_examples=25)
def test_values_are_rounded_to_the_nearest_level_and_clamped(value):
    images = torch.full((1, 3, 32, 32), value)
    level = Picture.from_pixels(images).integers[0, 0, 0, 0].item()
    assert abs(level - min(max(value, 0.0), 1.0) * 255) <= 0.5 + 1e-4


def test_wrong_shapes_and_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 40, 50\), got \(1, 3, 40, 51\)"):
        picture().with_pixels(torch.zeros(1, 3, 40, 51))
    with pytest.raises(ValueError, match="finite"):
        picture().with_pixels(torch.full((1, 3, 40, 50), torch.nan))


def test_alpha_and_durations_must_fit_the_frames():
    values = picture(2).integers
    with pytest.raises(ValueError, match="does not belong"):
        Picture(values, values[:1, :1])
    with pytest.raises(ValueError, match="does not belong"):
        Picture(values, values[:, :1].float())
    with pytest.raises(ValueError, match="each of 2 frames, got 1"):
        Picture(values, durations=(10,))


def test_a_picture_prints_without_its_metadata_blocks():
    described = Picture(picture().integers, exif=b"x" * 10_000, icc=b"y" * 10_000)
    assert "xxxx" not in repr(described)
