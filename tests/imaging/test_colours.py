"""Every colour mode becomes RGB rightly, or is refused with what to do."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from imaging.io import DamagedPictureError, UnsupportedPictureError, read, write

SRGB = ImageCms.createProfile("sRGB")
SRGB_BYTES = ImageCms.ImageCmsProfile(SRGB).tobytes()


def photograph() -> Image.Image:
    rows, columns = np.mgrid[:40, :48]
    return Image.fromarray(np.stack([rows * 6, columns * 5, (rows * columns) % 256], -1).astype(np.uint8))


def tagged(signature: bytes) -> bytes:
    """The sRGB profile that claims another colour space."""
    profile = bytearray(SRGB_BYTES)
    profile[16:20] = signature
    return bytes(profile)


def gray_profile(gamma: float) -> bytes:
    """A minimal ICC profile of gray with a power curve, laid out by hand (ICC.1:2001-04)."""
    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big") + bytes(2)
    white = b"XYZ " + bytes(4) + b"".join(round(v * 65536).to_bytes(4, "big") for v in (0.9642, 1.0, 0.8249))
    text = b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"gray\0" + bytes(79)
    tags = {b"desc": text + bytes(-len(text) % 4), b"kTRC": curve, b"wtpt": white}
    table, body, at = len(tags).to_bytes(4, "big"), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + (at + len(body)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body += content
    header = bytearray(128)
    header[8:12], header[12:16], header[16:20], header[20:24] = b"\2\x10\0\0", b"mntr", b"GRAY", b"XYZ "
    header[36:40], header[68:80] = b"acsp", white[8:20]
    header[:4] = (128 + len(table) + len(body)).to_bytes(4, "big")
    return bytes(header) + table + body


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA"])
def test_simple_modes_become_what_pillow_shows_with_a_note(tmp_path, suffix, mode):
    if (suffix, mode) == (".png", "PA"):
        pytest.skip("PNG has no such mode")
    image = photograph().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    if mode in ("P", "PA"):
        image = image.convert("RGB").convert("P").convert(mode)
    image = image.convert(mode)
    image.save(tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as stored:
        expected = np.array(stored.convert("RGBA"))
    picture = read(tmp_path / f"a{suffix}")
    assert torch.equal(picture.integers[0].permute(1, 2, 0), torch.from_numpy(expected[..., :3].copy()))
    assert (picture.alpha is not None) == (mode in ("LA", "PA", "RGBA"))
    if picture.alpha is not None:
        assert torch.equal(picture.alpha[0, 0], torch.from_numpy(expected[..., 3].copy()))
    assert bool(picture.notes) == (not mode.startswith("RGB"))


@pytest.mark.parametrize(
    ("mode", "transparent"), [("P", 0), ("P", bytes(range(256))), ("L", 12), ("RGB", (6, 5, 1))]
)
def test_transparency_by_colour_or_palette_becomes_alpha(tmp_path, mode, transparent):
    image = photograph().convert(mode)
    if mode == "P":
        image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=transparent)
    with Image.open(tmp_path / "a.png") as stored:
        expected = np.array(stored.convert("RGBA"))
    picture = read(tmp_path / "a.png")
    assert picture.alpha is not None
    got = torch.cat([picture.integers, picture.alpha], 1)[0].permute(1, 2, 0)
    assert torch.equal(got, torch.from_numpy(expected))
    assert (picture.visible_mask == 0).any()


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_without_a_profile_is_refused(tmp_path, suffix):
    photograph().convert("CMYK").save(tmp_path / f"a{suffix}")
    with pytest.raises(UnsupportedPictureError, match="CMYK without a colour profile; export it as RGB"):
        read(tmp_path / f"a{suffix}")


def test_cmyk_with_an_unusable_profile_is_refused(tmp_path):
    photograph().convert("CMYK").save(tmp_path / "a.jpg", icc_profile=tagged(b"CMYK"))
    with pytest.raises(UnsupportedPictureError, match="profile that cannot be used; export it as RGB"):
        read(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_goes_through_its_profile_to_srgb(tmp_path, suffix):
    vips = pytest.importorskip("pyvips")  # which brings a CMYK profile along
    profile = vips.Operation.call("profile_load", "cmyk")
    rows, columns = np.mgrid[:40, :48]  # muted colours, which inks can show
    muted = Image.fromarray(np.stack([90 + rows, 100 + columns, 160 - rows], -1).astype(np.uint8))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    inks = ImageCms.profileToProfile(muted, SRGB, BytesIO(profile), intent, "CMYK")
    assert inks is not None
    inks.save(tmp_path / f"a{suffix}", icc_profile=profile)
    picture = read(tmp_path / f"a{suffix}")
    error = picture.integers[0].permute(1, 2, 0).int() - torch.from_numpy(np.array(muted)).int()
    assert error.abs().float().mean() < 4
    assert picture.icc is None
    assert picture.notes == ("converted from CMYK to sRGB through its colour profile",)


def test_lab_is_refused(tmp_path):
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(photograph(), SRGB, lab, outputMode="LAB")
    assert image is not None
    image.save(tmp_path / "a.tif")
    with pytest.raises(UnsupportedPictureError, match=r"LAB.*export it as RGB"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["L", "LA"])
@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_gray_with_a_curve_of_its_own_becomes_srgb(tmp_path, mode, gamma):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (40, 1))
    image = Image.fromarray(ramp)
    if mode == "LA":
        image.putalpha(Image.fromarray(ramp.T[:40, :40].copy()).resize(image.size))
    image.save(tmp_path / "a.png", icc_profile=gray_profile(gamma))
    picture = read(tmp_path / "a.png")
    linear = (ramp[0] / 255.0) ** gamma
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    got = picture.integers[0, :, 0].double()
    assert picture.icc is None
    assert (got[0] - torch.from_numpy(expected)).abs().max() < 1.5
    assert (got - got[0]).abs().max() <= 1
    assert (picture.alpha is not None) == (mode == "LA")
    assert any("gray values were converted" in note for note in picture.notes)


def test_profiles_that_do_not_fit_are_dropped_with_a_note(tmp_path):
    for profile in (b"nonsense" * 30, tagged(b"CMYK"), tagged(b"Lab ")):
        photograph().save(tmp_path / "a.png", icc_profile=profile)
        picture = read(tmp_path / "a.png")
        assert picture.icc is None
        assert any("profile" in note and "dropped" in note for note in picture.notes)


def test_a_wide_rgb_profile_is_kept_and_the_numbers_are_untouched(tmp_path):
    photograph().save(tmp_path / "a.png", icc_profile=SRGB_BYTES)
    picture = read(tmp_path / "a.png")
    assert (picture.icc, picture.notes) == (SRGB_BYTES, ())
    assert torch.equal(picture.integers[0].permute(1, 2, 0), torch.from_numpy(np.array(photograph())))


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_formats_without_alpha_refuse_transparency_and_accept_opaque_alpha(tmp_path, suffix):
    image = photograph().convert("RGBA")
    image.save(tmp_path / "opaque.png")
    write(read(tmp_path / "opaque.png"), tmp_path / f"out{suffix}")
    assert read(tmp_path / f"out{suffix}").alpha is None
    image.putpixel((3, 3), (1, 2, 3, 254))
    image.save(tmp_path / "a.png")
    with pytest.raises(UnsupportedPictureError, match=r"has transparency, which .* write PNG, WebP or TIFF"):
        write(read(tmp_path / "a.png"), tmp_path / f"b{suffix}")


def test_gif_says_what_it_does_to_half_transparent_pixels_and_many_colours_stay_near(tmp_path):
    image = photograph().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    notes = write(picture, tmp_path / "a.gif")
    assert any("half-transparent" in note for note in notes)
    again = read(tmp_path / "a.gif")
    assert picture.alpha is not None
    assert again.alpha is not None
    assert torch.equal(again.alpha, (picture.alpha >= 128).to(torch.uint8) * 255)
    shown = (again.alpha == 255).expand_as(again.integers)
    assert (again.integers[shown].int() - picture.integers[shown].int()).abs().float().mean() < 10


def test_more_bits_in_an_avif_are_noted(tmp_path):
    file = BytesIO()
    photograph().save(file, "AVIF")
    data = bytearray(file.getvalue())
    data[data.index(b"av1C") + 6] |= 0x40
    (tmp_path / "a.avif").write_bytes(data)
    try:
        notes = read(tmp_path / "a.avif").notes
    except DamagedPictureError:
        pytest.skip("this libavif refuses the altered header")
    assert any("reduced to 8" in note for note in notes)
