"""What a file gives away, against what Pillow was told to write."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from detect.duplicates import ALIKE, Trace, find_duplicates, joined, perceptual_hash, thumbnail
from detect.equalise import Equaliser, TooSmallError, pixel_hash, widest_window
from detect.facts import examine, zigzag
from detect.frequency import COUNT, block_statistics, names_of_statistics


def images_of(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("quality", [10, 50, 75, 92, 100])
@pytest.mark.parametrize(("subsampling", "name"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_a_jpeg_tells_its_quality_and_subsampling(tmp_path, draw, save, quality, subsampling, name):
    progressive = quality == 92
    save(tmp_path / "a.jpg", draw(0), quality=quality, subsampling=subsampling, progressive=progressive)
    facts = examine(tmp_path / "a.jpg").facts
    assert (facts.format, facts.quality, facts.subsampling) == ("JPEG", quality, name)
    assert facts.progressive == progressive
    assert facts.bytes == (tmp_path / "a.jpg").stat().st_size
    assert facts.bytes_per_pixel == facts.bytes / 48**2


def test_tables_tell_files_apart_and_other_formats_have_none(tmp_path, draw, save):
    for quality in (74, 75):
        save(tmp_path / f"{quality}.jpg", draw(0), quality=quality)
    save(tmp_path / "again.jpg", draw(1), quality=75)
    save(tmp_path / "a.png", draw(0))
    tables = {path.stem: examine(path).facts.quantisation for path in tmp_path.iterdir()}
    assert tables["75"] == tables["again"] != tables["74"]
    assert tables["a"] is None


def test_metadata_is_seen(tmp_path, draw):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.fromarray(draw(0)).save(tmp_path / "a.jpg", exif=exif)
    assert examine(tmp_path / "a.jpg").facts.exif
    Image.fromarray(draw(0)).save(tmp_path / "b.jpg")
    assert not examine(tmp_path / "b.jpg").facts.exif


def test_transparent_pixels_are_seen_on_white(tmp_path, draw):
    pixels = np.dstack([draw(0), np.full((48, 48), 255, np.uint8)])
    pixels[:10, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = examine(tmp_path / "a.png").images
    assert images.shape == (1, 3, 48, 48)
    assert torch.all(images[:, :, :10] == 1)
    torch.testing.assert_close(images[:, :, 10:], images_of(draw(0))[:, :, 10:])


def test_zigzag_is_the_order_of_the_standard():
    assert zigzag()[:9] == (0, 1, 8, 16, 9, 2, 3, 10, 17)
    assert (zigzag()[28], zigzag()[35], zigzag()[63]) == (7, 56, 63)


def test_block_statistics_equal_a_loop_over_blocks(draw):
    from scipy.fft import dctn

    images = images_of(draw(0, 24, 40))
    luma = draw(0, 24, 40) @ np.array([0.299, 0.587, 0.114])
    found = block_statistics(images)[0].numpy()
    assert found.shape == (COUNT,) == (len(names_of_statistics()),)
    blocks = [luma[r : r + 8, c : c + 8] for r in range(0, 24, 8) for c in range(0, 40, 8)]
    coefficients = np.stack([dctn(block, norm="ortho") for block in blocks])
    np.testing.assert_allclose(np.exp(found[:64]), np.abs(coefficients).mean(0).flatten() + 0.01, rtol=2e-4)
    np.testing.assert_allclose(np.exp(found[64:128]), coefficients.std(0).flatten() + 0.01, rtol=2e-4)
    assert ((found[-3:] > 0) & (found[-3:] <= 1)).all()


def test_statistics_of_a_picture_do_not_depend_on_its_neighbours(draw):
    batch = torch.cat([images_of(draw(seed)) for seed in range(4)])
    alone = torch.cat([block_statistics(image[None]) for image in batch])
    torch.testing.assert_close(block_statistics(batch), alone)


def test_recompression_equals_a_real_jpeg(draw):
    pixels = draw(0)
    made = Equaliser(lowest_quality=80, highest_quality=80)(images_of(pixels)).pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80, subsampling=2)
    expected = np.asarray(Image.open(buffer).convert("RGB")).transpose(2, 0, 1).astype(int)
    apart = np.abs(made.numpy().astype(int) - expected)
    assert apart.mean() < 0.2
    assert (apart > 2).mean() < 0.01


def test_equalisation_depends_on_pixels_alone_and_varies_with_them(draw):
    equaliser = Equaliser(grid_shift=7)
    one, again, other = (equaliser(images_of(draw(seed))).pixels for seed in (0, 0, 1))
    assert torch.equal(one, again)
    shapes = {tuple(equaliser(images_of(draw(seed))).pixels.shape) for seed in range(12)}
    assert len(shapes) > 4
    assert one.shape != other.shape or not torch.equal(one, other)
    raw = Equaliser(level="raw")(images_of(draw(0)))
    assert torch.equal(raw.pixels, torch.from_numpy(draw(0)).permute(2, 0, 1))
    assert not raw.recompressed


def test_sizes_become_equal_by_windows_from_one_range(draw):
    widest = widest_window([60, 90, 20, 71], 32)
    assert widest == 60
    assert widest_window([600, 900], 32) == 64
    equaliser = Equaliser(level="codec+size-equalised", side=32, widest=widest)
    for height, width in ((60, 90), (71, 64)):
        assert equaliser(images_of(draw(0, height, width))).pixels.shape == (3, 32, 32)
    with pytest.raises(TooSmallError):
        equaliser(images_of(draw(0, 20, 90)))
    with pytest.raises(ValueError, match="widest_window of the whole set"):
        equaliser(images_of(draw(0, 40, 90)))


@pytest.mark.parametrize(
    "wrong",
    [{"level": "clean"}, {"lowest_quality": 0}, {"lowest_quality": 90, "highest_quality": 80}],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"unknown level|JPEG qualities"):
        Equaliser(**wrong)


def trace(pixels):
    images = images_of(pixels)
    return Trace(
        pixel_hash(torch.from_numpy(pixels).permute(2, 0, 1)), perceptual_hash(images), thumbnail(images)
    )


def test_duplicates_are_found_and_chance_is_not(draw):
    flat = [np.full((48, 48, 3), level, np.uint8) for level in (20, 200)]
    pictures = [draw(seed) for seed in range(150)]
    brighter = (pictures[7].astype(int) + 3).clip(0, 255).astype(np.uint8)
    found = find_duplicates([trace(each) for each in [*pictures, pictures[3], brighter, *flat]])
    assert found.exact == [(3, 150)]
    assert found.near == [(7, 151)], f"the two flat pictures differ by {ALIKE} and more"


def test_groups_are_joined_through_chains_of_pairs():
    assert joined(["a", "b", "c", "d"], [(0, 1), (2, 1)]) == ["a", "a", "a", "d"]
