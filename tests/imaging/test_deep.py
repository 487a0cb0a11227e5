"""16 bits per channel are kept exactly or refused; never cut down to 8 in silence."""

import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from imaging.io import DamagedPictureError, MissingExtraError, Picture, UnsupportedPictureError, read, write
from imaging.metadata import upright_exif
from imaging.quantize import quantize

pyvips = pytest.importorskip("pyvips")
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def values(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 65536, (40, 52, channels), dtype=np.uint16)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    height, width, bands = pixels.shape
    image = pyvips.Image.new_from_memory(pixels.tobytes(), width, height, bands, "ushort")
    image = image.copy(interpretation="rgb16" if bands > 2 else "grey16")
    image.write_to_file(str(path), **options)
    return path


def deep_picture(channels: int = 3) -> Picture:
    planes = torch.from_numpy(values(channels)).permute(2, 0, 1)[None]
    exif = Image.Exif()
    exif[0x013B], exif[0x8769] = "Zoe", {0x9003: "2024:05:06 07:08:09"}
    return Picture(
        planes[:, :3],
        planes[:, 3:] if channels == 4 else None,
        icc=ICC,
        exif=upright_exif(exif.tobytes()),
        xmp=b"<x:xmpmeta/>",
        dpi=(240.0, 240.0),
    )


def save_with_extra_sample(path: Path, pixels: np.ndarray, meaning: int | None) -> Path:
    """Write RGBA and let the file say another meaning of its fourth channel; None takes the tag away."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    write(Picture(planes[:, :3], planes[:, 3:]), path)
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<HHIH", 338, 3, 1, 2))
    if meaning is None:
        data[at : at + 2] = struct.pack("<H", 339)  # a sample format: 1 stands for unsigned integers
        data[at + 4 : at + 12] = struct.pack("<IHH", 1, 1, 0)
    else:
        data[at + 8] = meaning
    path.write_bytes(data)
    return path


def alpha_of(picture: Picture) -> torch.Tensor:
    assert picture.alpha is not None
    return picture.alpha


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_files_of_another_writer_are_read_exactly(tmp_path, suffix, channels):
    if (suffix, channels) == (".tif", 2):
        pytest.skip("Pillow, which reads the tags, does not know gray with alpha")
    pixels = values(channels)
    picture = read(save(tmp_path / f"a{suffix}", pixels))
    colours = pixels[..., :1].repeat(3, -1) if channels < 3 else pixels[..., :3]
    assert picture.integers.dtype == torch.uint16
    assert picture.levels == 65535
    assert torch.equal(picture.integers[0].permute(1, 2, 0), torch.from_numpy(colours.copy()))
    if channels in (2, 4):
        assert torch.equal(alpha_of(picture)[0, 0], torch.from_numpy(pixels[..., -1].copy()))
    assert any("grayscale" in note for note in picture.notes) == (channels == 1)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bits_and_their_metadata_survive_writing(tmp_path, suffix, channels):
    picture = deep_picture(channels)
    assert write(picture, tmp_path / f"a{suffix}") == ()
    again = read(tmp_path / f"a{suffix}")
    assert torch.equal(again.integers, picture.integers)
    assert (again.alpha is None) == (channels == 3)
    assert channels == 3 or torch.equal(alpha_of(again), alpha_of(picture))
    assert (again.icc, again.xmp) == (ICC, picture.xmp)
    assert again.dpi == pytest.approx((240, 240), abs=0.05)
    parsed = Image.Exif()
    parsed.load(again.exif or b"")
    assert parsed[0x013B] == "Zoe"
    assert parsed.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_libvips_reads_what_was_written(tmp_path, suffix):
    write(deep_picture(), tmp_path / f"a{suffix}")
    image = pyvips.Image.new_from_file(str(tmp_path / f"a{suffix}"), fail_on="warning")
    assert image.interpretation == "rgb16"
    np.testing.assert_array_equal(image.numpy(), values())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_budget_holds_in_the_16_bit_file(tmp_path, suffix, generator):
    picture = deep_picture()
    noise = torch.randn(picture.integers.shape, generator=generator)
    perturbed = quantize(picture.pixels + noise, picture.pixels, 8 / 255, levels=picture.levels)
    write(picture.with_pixels(perturbed), tmp_path / f"a{suffix}")
    change = read(tmp_path / f"a{suffix}").integers.int() - picture.integers.int()
    assert change.abs().max() == 8 * 257


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientation_is_applied_to_16_bits_too(tmp_path, suffix):
    image = pyvips.Image.new_from_memory(values().tobytes(), 52, 40, 3, "ushort").copy(interpretation="rgb16")
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    image.write_to_file(str(tmp_path / f"a{suffix}"))
    picture = read(tmp_path / f"a{suffix}")
    expected = torch.from_numpy(np.rot90(values(), -1).copy())
    assert torch.equal(picture.integers[0].permute(1, 2, 0), expected)
    write(picture, tmp_path / f"b{suffix}")
    assert torch.equal(read(tmp_path / f"b{suffix}").integers, picture.integers)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_without_libvips_16_bits_are_refused_with_the_command(tmp_path, monkeypatch, suffix):
    path = save(tmp_path / f"a{suffix}", values())
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(MissingExtraError, match=r"16 bits per channel.*pip install 'vernis\[pro\]'"):
        read(path)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif", ".heic", ".gif", ".bmp"])
def test_8_bit_formats_refuse_16_bits(tmp_path, suffix):
    with pytest.raises(UnsupportedPictureError, match="16 bits per channel, which"):
        write(deep_picture(), tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_16_bit_file_that_is_cut_off_is_damaged(tmp_path, suffix, share):
    write(replace(deep_picture(), exif=None), tmp_path / f"a{suffix}")
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedPictureError) as caught:
        read(tmp_path / f"a{suffix}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_floating_point_and_32_bit_tiff_are_refused(tmp_path, mode):
    Image.new(mode, (40, 40)).save(tmp_path / "a.tif")
    with pytest.raises(UnsupportedPictureError, match="32 bits"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("bands", "kind", "sentence"),
    [
        (3, "float", "floating-point values of 32 bits; export it with 8 or 16 unsigned bits"),
        (3, "short", "signed or floating-point values of 16 bits; export it with 8 or 16 unsigned bits"),
        (3, "uint", "stores 32 bits per channel; export it with 8 or 16 bits"),
        (2, "ushort", "is grayscale with 2 channels of 16 bits; export it as RGB or RGBA"),
        (5, "ushort", "is RGB with 5 channels of 16 bits; export it as RGB or RGBA"),
        (7, "uchar", "is RGB with 7 channels of 8 bits; export it as RGB or RGBA"),
    ],
)
def test_a_tiff_that_pillow_does_not_know_is_told_apart_from_a_damaged_one(tmp_path, bands, kind, sentence):
    image = pyvips.Image.black(52, 40, bands=bands).cast(kind)
    image.copy(interpretation="b-w" if bands == 2 else "rgb").write_to_file(str(tmp_path / "a.tif"))
    with pytest.raises(UnsupportedPictureError) as caught:
        read(tmp_path / "a.tif")
    assert str(caught.value).endswith(sentence)


def test_a_tiff_of_a_known_layout_that_pillow_refuses_is_damaged(tmp_path):
    path = save(tmp_path / "a.tif", values())
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<HHI", 256, 3, 1))  # the width
    data[at : at + 2] = struct.pack("<H", 255)
    path.write_bytes(data)
    with pytest.raises(DamagedPictureError):
        read(path)


def test_16_bit_colours_multiplied_by_alpha_are_refused(tmp_path):
    path = save_with_extra_sample(tmp_path / "a.tif", values(4), 1)
    with pytest.raises(UnsupportedPictureError, match="straight alpha"):
        read(path)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("out", [".png", ".tif"])
def test_a_channel_of_unspecified_meaning_is_dropped_with_a_note(tmp_path, bits, out):
    pixels = values(4) if bits == 16 else (values(4) >> 8).astype(np.uint8)
    pixels[..., 3] = 0
    pixels[10:20, 10:20, 3] = np.iinfo(pixels.dtype).max  # a saved selection
    picture = read(save_with_extra_sample(tmp_path / "a.tif", pixels, 0))
    assert picture.alpha is None
    assert picture.notes == ("its extra channel, which is not declared to be transparency, was dropped",)
    write(picture, tmp_path / f"b{out}")
    again = read(tmp_path / f"b{out}")
    assert again.alpha is None
    assert torch.equal(again.integers[0].permute(1, 2, 0), torch.from_numpy(pixels[..., :3].copy()))


def test_a_fourth_channel_of_16_bits_is_alpha_only_where_the_file_says_so(tmp_path):
    declared = read(save_with_extra_sample(tmp_path / "a.tif", values(4), 2))
    assert torch.equal(alpha_of(declared)[0, 0], torch.from_numpy(values(4)[..., 3].copy()))
    assert declared.notes == ()
    silent = read(save_with_extra_sample(tmp_path / "b.tif", values(4), None))
    assert silent.alpha is None
    assert any("extra channel" in note for note in silent.notes)


def test_a_16_bit_gray_profile_is_refused(tmp_path):
    gray = Path(tmp_path / "a.png")
    save(gray, values(1))
    profile = bytearray(ICC)
    profile[16:20] = b"GRAY"
    image = pyvips.Image.new_from_file(str(gray))
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", bytes(profile))
    image.write_to_file(str(tmp_path / "b.png"))
    with pytest.raises(UnsupportedPictureError, match="gray"):
        read(tmp_path / "b.png")
