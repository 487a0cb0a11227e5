"""Bad input gives one clear line as a PictureError; nothing else comes out, nothing is printed."""

import logging
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imaging.io import (
    DamagedPictureError,
    MissingExtraError,
    Picture,
    PictureError,
    PictureSizeError,
    UnsupportedPictureError,
    read,
    write,
)
from imaging.metadata import png_chunk

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "HEIC")
MUTANTS = 60  # per format and kind of file


def photograph(side: int = 48) -> Image.Image:
    rows, columns = np.mgrid[:side, :side]
    planes = np.stack([rows * 255 // side, columns * 255 // side, rows * columns % 256], -1)
    return Image.fromarray(planes.astype(np.uint8))


def encoded(format: str, *, animated: bool = False) -> bytes:
    file, image = BytesIO(), photograph()
    exif = Image.Exif()
    exif[0x013B], exif[0x8769] = "Zoe", {0x9003: "2024:05:06 07:08:09"}
    if not animated:  # libavif 1.4 crashes when it writes a sequence with an orientation
        exif[0x0112] = 6
    if format == "HEIC":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(image).save(file, quality=60, exif=exif.tobytes())
        return file.getvalue()
    options: dict[str, Any] = {}
    if animated:
        options = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    if format in ("PNG", "WEBP", "GIF", "AVIF") and animated:
        options["duration"] = 50
    if format == "TIFF" and animated:  # libtiff, which compresses, cannot write an EXIF directory
        options["compression"] = "tiff_lzw"
    elif format not in ("GIF", "BMP"):
        options["exif"] = exif.tobytes()
    image.save(file, format, **options)
    return file.getvalue()


def message(path: Path, kind: type[PictureError] = PictureError, **options) -> str:
    with pytest.raises(kind) as caught:
        read(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert repr(str(path)) in text
    assert len(text) < 400
    return text


def write_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert message(tmp_path / "none.png").endswith("does not exist")
    assert message(tmp_path).endswith("is a folder; name a picture file")


def test_an_empty_file_says_so(tmp_path):
    assert message(write_bytes(tmp_path / "a.png", b""), DamagedPictureError).endswith("is empty (0 bytes)")


def test_a_device_is_no_picture():
    assert message(Path("/dev/zero")).endswith("is no regular file")


def test_an_unreadable_file_says_why(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    path = write_bytes(tmp_path / "a.png", b"x")
    monkeypatch.setattr(Path, "open", refuse)
    assert message(path).endswith("cannot be read: Permission denied")


@pytest.mark.parametrize(
    "content", [b"hello, world\n" * 9, b"\0" * 100, b"%PDF-1.7\n" + b"x" * 99, b"<svg/>", b"x"]
)
def test_other_files_in_disguise_are_refused(tmp_path, content):
    assert "expected PNG, JPEG" in message(write_bytes(tmp_path / "a.png", content), UnsupportedPictureError)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIC", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_is_cut_off_is_damaged(tmp_path, format, share):
    data = encoded(format)
    message(write_bytes(tmp_path / "a.img", data[: int(len(data) * share)]), DamagedPictureError)


@pytest.mark.parametrize("size", [(31, 200), (200, 31), (1, 1), (100_000, 1)])
def test_pictures_that_are_too_small_are_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    text = message(tmp_path / "a.png", PictureSizeError)
    assert f"too small: {size[0]} x {size[1]} px; both sides must have at least 32" in text


def test_the_smallest_and_a_long_picture_are_read(tmp_path):
    for size in ((32, 32), (20_000, 32)):
        Image.new("RGB", size).save(tmp_path / "a.png")
        assert (read(tmp_path / "a.png").width, read(tmp_path / "a.png").height) == size


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(20_000, 10_001), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_with_its_size(tmp_path, size):
    text = message(write_bytes(tmp_path / "a.png", png_claiming(*size)), PictureSizeError)
    assert f"too large: {size[0]} x {size[1]} px; the limit is 200 megapixels" in text


def test_a_picture_of_zero_width_is_refused(tmp_path):
    message(write_bytes(tmp_path / "a.png", png_claiming(0, 40)))


def test_the_limit_is_a_parameter_and_counts_frames_and_pillows_own_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # far below what is read here
    path = write_bytes(tmp_path / "a.gif", encoded("GIF", animated=True))
    assert read(path).frames == 3
    assert "48 x 48 px x 3 frames; the limit is 0.006 megapixels" in message(
        path, PictureSizeError, max_megapixels=0.006
    )
    message(write_bytes(tmp_path / "b.png", b"\x89PNG\r\n\x1a\n"))
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_a_gif_whose_frames_outgrow_it_is_stopped(tmp_path):
    data = bytearray(encoded("GIF", animated=True))
    at = data.index(b"\x2c", 13 + 768)  # the first image block: left, top, width, height
    data[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    message(write_bytes(tmp_path / "a.gif", bytes(data)))


def test_a_missing_extra_names_the_command(tmp_path, monkeypatch):
    path = write_bytes(tmp_path / "a.heic", encoded("HEIC"))
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    assert "pip install 'vernis[heic]'" in message(path, MissingExtraError)


def test_what_pillow_logs_about_a_file_is_not_printed(tmp_path, monkeypatch, capfd):
    write(Picture.from_pixels(torch.zeros(1, 3, 40, 40)), tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.index(struct.pack("<HHIH", 277, 3, 1, 3))  # the samples per pixel
    data[at + 8 : at + 10] = struct.pack("<H", 35_331)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a program without any logging
    message(write_bytes(tmp_path / "b.tif", bytes(data)), DamagedPictureError)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("PIL").handlers == []


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """Flip, overwrite, delete, repeat or cut a few bytes, most often near the start, where headers are."""
    mutant = bytearray(data)
    for _ in range(generator.integers(1, 6)):
        at = int(len(mutant) * generator.random() ** generator.integers(1, 5))
        length = int(generator.integers(1, 9))
        match generator.integers(0, 5):
            case 0:
                mutant[at : at + 1] = bytes([generator.integers(0, 256)])
            case 1:
                mutant[at : at + length] = generator.bytes(length)
            case 2:
                del mutant[at : at + length]
            case 3:
                mutant[at:at] = mutant[at : at + length]
            case _ if generator.random() < 0.3:
                del mutant[at:]
            case _:
                mutant[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(mutant)


@pytest.mark.parametrize("animated", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_mutated_files_are_read_or_refused_and_nothing_else(tmp_path, capfd, format, animated):
    if animated and format in ("JPEG", "BMP", "HEIC"):
        pytest.skip("has no frames")
    generator = np.random.default_rng([FORMATS.index(format), animated])
    original, path = encoded(format, animated=animated), tmp_path / "a.img"
    refused = 0
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        for _ in range(MUTANTS):
            path.write_bytes(mutate(original, generator))
            try:
                sentences = read(path, max_megapixels=2.0).notes
            except PictureError as error:
                sentences = (str(error),)
                refused += 1
            assert not any("\n" in sentence for sentence in sentences)
    assert not leaked, [str(each.message) for each in leaked]
    assert refused > 0
    assert capfd.readouterr() == ("", "")
