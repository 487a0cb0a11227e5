"""Files survive a round trip: pixels exactly where the format can, and everything around them."""

import hashlib
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image

from imaging.formats import FORMATS, sniff
from imaging.io import PICTURE_SUFFIXES, Picture, UnsupportedPictureError, is_lossless, read, write

LOSSLESS = (".png", ".webp", ".tif", ".bmp")
LOSSY = (".jpg", ".avif", ".heic", ".gif")
sides = st.integers(32, 70)


def noise(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 200 / height, columns * 200 / width, (rows + columns) * 100 / height]
    return np.stack(planes, -1).astype(np.uint8) + 20


def picture_of(pixels: np.ndarray) -> Picture:
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return Picture(planes[:, :3], planes[:, 3:] if planes.shape[1] == 4 else None)


def alpha_of(picture: Picture) -> torch.Tensor:
    assert picture.alpha is not None
    return picture.alpha


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.mark.parametrize("suffix", LOSSLESS)
@given(seed=st.integers(0, 99), height=sides, width=sides)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_lossless_format_keeps_every_pixel(folder, suffix, seed, height, width):
    picture = picture_of(noise(seed, height, width))
    path = folder / f"rgb{suffix}"
    write(picture, path, overwrite=True)
    assert torch.equal(read(path).integers, picture.integers)
    assert read(path).alpha is None
    assert is_lossless(path)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@given(seed=st.integers(0, 99), height=sides, width=sides)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_colours_under_transparent_pixels_are_kept_exactly(folder, suffix, seed, height, width):
    pixels = noise(seed, height, width, 4)
    pixels[: height // 2, :, 3] = 0
    picture = picture_of(pixels)
    path = folder / f"rgba{suffix}"
    write(picture, path, overwrite=True)
    again = read(path)
    assert torch.equal(again.integers, picture.integers)
    assert torch.equal(alpha_of(again), alpha_of(picture))


@pytest.mark.parametrize("suffix", LOSSY)
def test_a_lossy_format_stays_close_to_a_smooth_picture(tmp_path, suffix):
    picture = picture_of(smooth(64, 80))
    write(picture, tmp_path / f"out{suffix}")
    error = (read(tmp_path / f"out{suffix}").integers.int() - picture.integers.int()).abs()
    assert error.float().mean() < (8 if suffix == ".gif" else 1.5)
    assert not is_lossless(f"out{suffix}")


@pytest.mark.parametrize("suffix", [*LOSSLESS, *LOSSY])
def test_the_same_picture_gives_the_same_bytes(tmp_path, suffix):
    picture = picture_of(noise(0, 40, 48))
    for name in "ab":
        write(picture, tmp_path / (name + suffix))
    digests = {hashlib.sha256((tmp_path / (name + suffix)).read_bytes()).digest() for name in "ab"}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("suffix", "share_left"), [(".png", 1), (".webp", 1), (".jpg", 0.9), (".avif", 0.6), (".heic", 0.9)]
)
def test_most_of_a_perturbation_survives_saving(tmp_path, suffix, share_left, generator):
    original = picture_of(smooth(96, 96))
    signs = torch.randint(0, 2, (1, 3, 96, 96), generator=generator) * 2.0 - 1
    write(original.with_pixels(original.pixels + signs * 8 / 255), tmp_path / f"out{suffix}")
    left = read(tmp_path / f"out{suffix}").pixels - original.pixels
    assert (left * signs).mean() / (8 / 255) >= share_left - 1e-6


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES))
def test_every_listed_suffix_can_be_written_and_is_recognised_by_its_content(tmp_path, suffix):
    path = tmp_path / f"picture{suffix.upper()}"
    write(picture_of(smooth(33, 47)), path)
    picture = read(path)
    assert suffix in FORMATS[picture.format].suffixes
    assert (picture.frames, picture.height, picture.width) == (1, 33, 47)


def test_the_content_decides_on_the_format_and_not_the_name(tmp_path):
    Image.fromarray(noise(0, 40, 40)).save(tmp_path / "really.png", "JPEG")
    assert read(tmp_path / "really.png").format == "JPEG"


def test_an_unknown_suffix_names_the_known_ones():
    with pytest.raises(UnsupportedPictureError, match=r"'a\.xyz' has the suffix \.xyz.*\.png"):
        is_lossless("a.xyz")
    with pytest.raises(UnsupportedPictureError, match="'a' has no suffix"):
        is_lossless("a")


def test_brands_tell_avif_from_heic():
    assert sniff(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") == "AVIF"
    assert sniff(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic") == "HEIC"
    assert sniff(b"\0\0\0\x14ftypisom\0\0\0\0mp42") is None


@given(st.binary(max_size=64))
def test_sniffing_never_fails(head):
    assert sniff(head) in {None, *FORMATS}
