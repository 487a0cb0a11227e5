"""Every frame of an animation is read complete and written with its duration."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from imaging.io import Picture, UnsupportedPictureError, read, write
from imaging.webp import join_frames


def frames(number: int = 4, *, alpha: bool = False, colours: int = 6) -> torch.Tensor:
    """Frames of a few flat colours, with a part that moves; hidden in the corner when there is alpha."""
    generator = torch.Generator().manual_seed(number)
    palette = torch.randint(0, 256, (colours, 3), generator=generator)
    indices = (
        torch.randint(0, colours, (5, 6), generator=generator).repeat_interleave(8, 0).repeat_interleave(8, 1)
    )
    made = torch.stack([palette[indices.roll(shift, 1)].permute(2, 0, 1) for shift in range(number)])
    opacity = torch.full((number, 1, *indices.shape), 255)
    opacity[:, :, :9, :9] = 0 if alpha else 255
    return torch.cat([made, opacity], 1).to(torch.uint8)


def animation(*, alpha: bool = False, plays: int = 0) -> Picture:
    values = frames(alpha=alpha)
    return Picture(values[:, :3], values[:, 3:] if alpha else None, durations=(40, 100, 250, 70), plays=plays)


def alpha_of(picture: Picture) -> torch.Tensor:
    assert picture.alpha is not None
    return picture.alpha


@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif"])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("plays", [0, 1, 3])
def test_frames_durations_and_plays_survive(tmp_path, suffix, alpha, plays):
    picture = animation(alpha=alpha, plays=plays)
    assert write(picture, tmp_path / f"out{suffix}") == ()
    again = read(tmp_path / f"out{suffix}")
    assert again.durations == picture.durations
    assert again.plays == plays
    assert torch.equal(again.visible_mask, picture.visible_mask)
    shown = picture.visible_mask.bool().expand_as(picture.integers) if suffix == ".gif" else ...
    assert torch.equal(again.integers[shown], picture.integers[shown])


def test_an_avif_sequence_keeps_frames_and_durations(tmp_path):
    picture = animation()
    write(picture, tmp_path / "out.avif")
    again = read(tmp_path / "out.avif")
    assert again.durations == picture.durations
    assert (again.integers.int() - picture.integers.int()).abs().float().mean() < 3


def test_pages_of_a_tiff_are_frames_without_durations(tmp_path):
    picture = animation(alpha=True)
    assert write(picture, tmp_path / "out.tif") == ("TIFF cannot keep the durations of frames",)
    again = read(tmp_path / "out.tif")
    assert again.durations == ()
    assert torch.equal(again.integers, picture.integers)
    assert torch.equal(alpha_of(again), alpha_of(picture))
    with Image.open(tmp_path / "out.tif") as opened:
        assert getattr(opened, "n_frames", 1) == 4


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_noise_frames_survive_exactly_and_other_readers_see_them_too(tmp_path, suffix):
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 4, 33, 41), dtype=np.uint8))
    values[:, 3, :20] = 0
    write(Picture(values[:, :3], values[:, 3:], durations=(10, 20, 30)), tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as opened:
        seen = [np.array(frame.convert("RGBA")) for frame in ImageSequence.Iterator(opened)]
    assert torch.equal(torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2), values)


@pytest.mark.parametrize("disposal", [1, 2, 3])
def test_partial_gif_frames_are_composed_as_pillow_shows_them(tmp_path, disposal):
    images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames(3, alpha=True)]
    images[0].save(
        tmp_path / "a.gif",
        save_all=True,
        append_images=images[1:],
        duration=[50, 60, 70],
        loop=0,
        disposal=disposal,
    )
    picture = read(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as opened:
        expected = [np.array(frame.convert("RGBA")) for frame in ImageSequence.Iterator(opened)]
    got = torch.cat([picture.integers, alpha_of(picture)], 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(got, np.stack(expected))
    assert picture.durations == (50, 60, 70)


def test_equal_neighbours_become_one_longer_frame(tmp_path):
    first, second = frames(2)
    write(Picture(torch.stack([first, first, second])[:, :3], durations=(10, 20, 30)), tmp_path / "a.webp")
    picture = read(tmp_path / "a.webp")
    assert picture.durations == (30, 30)
    assert torch.equal(picture.integers, torch.stack([first, second])[:, :3])


def test_the_fallback_still_of_an_apng_is_left_out_with_a_note(tmp_path):
    still, *images = [Image.fromarray(frame[:3].permute(1, 2, 0).numpy()) for frame in frames(3)]
    still.save(tmp_path / "a.png", save_all=True, append_images=images, default_image=True, duration=[50, 60])
    picture = read(tmp_path / "a.png")
    assert torch.equal(picture.integers, frames(3)[1:, :3])
    assert any("still" in note for note in picture.notes)


def test_pages_of_different_sizes_leave_the_first_with_a_note(tmp_path):
    large, small = Image.new("RGB", (64, 48)), Image.new("RGB", (40, 40))
    large.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    picture = read(tmp_path / "a.tif")
    assert (picture.frames, picture.width) == (1, 64)
    assert any("first of its 2 pages" in note for note in picture.notes)


def test_previews_inside_a_jpeg_are_left_out_with_a_note(tmp_path):
    images = [Image.fromarray(frame[:3].permute(1, 2, 0).numpy()) for frame in frames(2)]
    images[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=images[1:])
    picture = read(tmp_path / "a.jpg")
    assert (picture.format, picture.frames) == ("JPEG", 1)
    assert any("further pictures" in note for note in picture.notes)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif", ".avif"])
def test_pages_do_not_become_an_animation_unasked(tmp_path, suffix):
    with pytest.raises(UnsupportedPictureError, match=r"has 4 pages, and .* write TIFF"):
        write(Picture(frames()[:, :3]), tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".heic"])
def test_still_formats_refuse_an_animation(tmp_path, suffix):
    with pytest.raises(UnsupportedPictureError, match="has 4 frames"):
        write(animation(), tmp_path / f"a{suffix}")


def test_only_lossless_stills_can_be_joined_to_webp():
    with pytest.raises(ValueError, match="lossless WebP"):
        join_frames(
            [b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0"],
            (1, 1),
            [1],
            plays=0,
            alpha=False,
            icc=None,
            exif=None,
            xmp=None,
        )
