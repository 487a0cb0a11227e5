"""A file appears complete or not at all, and nothing is overwritten unasked."""

import errno
import os
import stat

import pytest
import torch

from imaging.io import (
    Picture,
    PictureError,
    PictureSizeError,
    PictureWriteError,
    UnsupportedPictureError,
    read,
    write,
)


def picture(value: int = 7, size: tuple[int, int] = (40, 40)) -> Picture:
    return Picture(torch.full((1, 3, *size), value, dtype=torch.uint8))


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path):
    path = tmp_path / "a.png"
    write(picture(1), path)
    with pytest.raises(PictureWriteError, match=r"a\.png' exists already; pass overwrite=True"):
        write(picture(2), path)
    assert read(path).integers.unique().tolist() == [1]
    write(picture(2), path, overwrite=True)
    assert read(path).integers.unique().tolist() == [2]
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_was_written_is_checked_before_it_replaces_anything(tmp_path):
    path, seen = tmp_path / "a.png", []
    write(picture(1), path, check=seen.append)
    assert [each.integers.unique().tolist() for each in seen] == [[1]]

    def refuse(decoded):
        raise ValueError(decoded.integers.unique().tolist())

    with pytest.raises(ValueError, match="2"):
        write(picture(2), path, overwrite=True, check=refuse)
    assert read(path).integers.unique().tolist() == [1]
    with pytest.raises(PictureSizeError, match=r"a\.png' is too small"):
        write(picture(2, size=(8, 8)), path, overwrite=True, check=seen.append)
    assert read(path).integers.unique().tolist() == [1]
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_failure_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch, number, step):
    path = tmp_path / "a.png"
    write(picture(1), path)

    def fail(*_args, **_options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(step, fail)
    with pytest.raises(PictureWriteError) as caught:
        write(picture(2), path, overwrite=True)
    assert str(caught.value) == f"'{path}' cannot be written: {os.strerror(number)}"
    monkeypatch.undo()
    assert read(path).integers.unique().tolist() == [1]
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_interruption_leaves_no_partial_file(tmp_path, monkeypatch):
    def interrupt(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(picture(), tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_a_write_that_the_system_stops_half_way_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(PictureWriteError, match="cannot be written: File too large"):
            write(picture(), tmp_path / "a.bmp")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_and_an_unknown_suffix_are_named(tmp_path):
    with pytest.raises(PictureWriteError, match="cannot be written: its folder does not exist"):
        write(picture(), tmp_path / "none" / "a.png")
    with pytest.raises(UnsupportedPictureError, match=r"\.psd.*\.webp"):
        write(picture(), tmp_path / "a.psd")
    assert os.listdir(tmp_path) == []


def test_a_broken_link_in_the_way_counts_as_existing(tmp_path):
    os.symlink(tmp_path / "nowhere.png", tmp_path / "a.png")
    with pytest.raises(PictureWriteError, match="exists already"):
        write(picture(), tmp_path / "a.png")


def test_the_new_file_has_the_permissions_of_any_new_file(tmp_path):
    write(picture(), tmp_path / "a.png")
    (tmp_path / "plain").write_bytes(b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.png", "plain")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("suffix", "size"), [(".webp", (32, 16_384)), (".jpg", (32, 65_501)), (".gif", (32, 65_536))]
)
def test_a_side_too_long_for_the_format_is_refused_with_the_limit(tmp_path, suffix, size):
    with pytest.raises(
        UnsupportedPictureError, match=rf"has {size[1]} x 32 px, and \w+ ends at {size[1] - 1}"
    ):
        write(picture(size=size), tmp_path / f"a{suffix}")


def test_what_an_encoder_raises_becomes_one_line(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise SystemError("tile cannot extend\noutside image")

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    with pytest.raises(PictureError) as caught:
        write(picture(), tmp_path / "a.png")
    assert str(caught.value).endswith("cannot be encoded as PNG (tile cannot extend outside image)")


def test_names_with_line_breaks_stay_on_one_line(tmp_path):
    with pytest.raises(PictureError) as caught:
        read(tmp_path / "two\nlines.png")
    assert "\n" not in str(caught.value)


def test_reading_and_writing_leave_the_input_as_it_was(tmp_path):
    path = tmp_path / "a.webp"
    write(picture(), path)
    before = path.read_bytes()
    write(read(path), tmp_path / "b.webp")
    assert path.read_bytes() == before == (tmp_path / "b.webp").read_bytes()
