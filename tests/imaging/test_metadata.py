"""Orientation is applied once; EXIF, profile, XMP, resolution and text survive; previews do not."""

import re
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image, ImageCms, ImageOps

from imaging.io import Picture, read, write
from imaging.metadata import colour_space, plausible_dpi, png_chunk, png_chunks, upright_exif, upright_xmp

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>'
    b'<rdf:Description tiff:Orientation="6" dc:creator="Zo\xc3\xab">'
    b"<tiff:Orientation>8</tiff:Orientation><xmpGImg:image>/9j/4AAQ</xmpGImg:image></rdf:Description></rdf:RDF>"
    b"</x:xmpmeta>"
)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
CARRIES_EXIF = (".png", ".jpg", ".webp", ".tif", ".avif", ".heic")


def exif_bytes(orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    exif[0x013B], exif[0x8298] = "Zoe", "(c) Zoe"
    exif[0x8769] = {0x9003: "2024:05:06 07:08:09", 0x927C: b"MAKERNOTE" * 9}
    if orientation:
        exif[0x0112] = orientation
    return exif.tobytes()


def with_preview(order: str, orientation: int) -> tuple[bytes, bytes]:
    """An EXIF block laid out by hand: orientation and artist, a second directory, and a preview."""
    preview = b"\xff\xd8PREVIEW\xff\xd9"
    artist = b"Zoe Q\0"
    first, second = 8, 8 + 2 + 2 * 12 + 4
    artist_at = second + 2 + 2 * 12 + 4
    preview_at = artist_at + len(artist)
    short = struct.pack(order + "HH", orientation, 0)
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", first)
    block += struct.pack(order + "H", 2) + struct.pack(order + "HHI", 0x0112, 3, 1) + short
    block += struct.pack(order + "HHII", 0x013B, 2, len(artist), artist_at) + struct.pack(order + "I", second)
    block += struct.pack(order + "H", 2) + struct.pack(order + "HHII", 0x0201, 4, 1, preview_at)
    block += struct.pack(order + "HHII", 0x0202, 4, 1, len(preview)) + struct.pack(order + "I", 0)
    return block + artist + preview, preview


def pixels() -> np.ndarray:
    rows, columns = np.mgrid[:40, :56]
    return np.stack([rows * 6, columns * 4, (rows // 8 + columns // 8) % 2 * 200], -1).astype(np.uint8)


def full_picture() -> Picture:
    return Picture(
        torch.from_numpy(pixels()).permute(2, 0, 1)[None],
        icc=ICC,
        exif=upright_exif(exif_bytes()),
        xmp=upright_xmp(XMP),
        dpi=(300.0, 300.0),
        text=(("Comment", "caf\xe9"), ("Title", "\u96ea")),
        colour_chunks=((b"gAMA", struct.pack(">I", 45455)),),
    )


def tags(exif: bytes | None) -> dict:
    parsed = Image.Exif()
    parsed.load(exif or b"")
    return {0x013B: parsed.get(0x013B), 0x8298: parsed.get(0x8298), **parsed.get_ifd(0x8769)}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_exactly_once(tmp_path: Path, suffix, orientation):
    path = tmp_path / f"turned{suffix}"
    options: dict[str, Any] = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}.get(
        suffix, {}
    )
    Image.fromarray(pixels()).save(path, exif=exif_bytes(orientation), **options)
    with Image.open(path) as stored:
        expected = np.array(ImageOps.exif_transpose(stored).convert("RGB"))
    picture = read(path)
    assert torch.equal(picture.integers[0].permute(1, 2, 0), torch.from_numpy(expected))
    assert (picture.height, picture.width) == ((40, 56) if orientation < 5 else (56, 40))
    assert tags(picture.exif) == tags(exif_bytes())
    for copy in (".png", ".jpg", ".tif", ".avif", ".heic"):
        write(picture, tmp_path / f"copy{copy}", overwrite=True)
        again = read(tmp_path / f"copy{copy}")
        assert (again.height, again.width) == (picture.height, picture.width)
        difference = again.integers.int() - picture.integers.int()
        assert difference.abs().float().mean() < 4


def test_the_turn_that_a_heic_container_makes_is_not_made_again(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = pillow_heif.from_pillow(Image.fromarray(pixels()))
    file.save(tmp_path / "a.heic", quality=95, chroma=444, exif=exif_bytes(6))
    picture = read(tmp_path / "a.heic")
    expected = torch.from_numpy(np.rot90(pixels(), -1).copy())
    assert (picture.integers[0].permute(1, 2, 0).int() - expected.int()).abs().float().mean() < 2
    assert tags(picture.exif)[0x013B] == "Zoe"


@pytest.mark.parametrize("suffix", CARRIES_EXIF)
def test_profile_exif_and_xmp_survive_in_every_format_that_can_carry_them(tmp_path, suffix):
    picture = full_picture()
    notes = write(picture, tmp_path / f"out{suffix}")
    again = read(tmp_path / f"out{suffix}")
    assert again.icc == ICC
    assert again.xmp == picture.xmp
    assert tags(again.exif) == tags(picture.exif)
    if suffix != ".tif":  # where EXIF lives in the file's own tags and is laid out anew
        assert again.exif == picture.exif
    assert not any(word in note for note in notes for word in ("EXIF", "XMP", "profile"))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_the_resolution_survives(tmp_path, suffix):
    write(full_picture(), tmp_path / f"out{suffix}")
    assert read(tmp_path / f"out{suffix}").dpi == pytest.approx((300, 300), abs=0.05)


def test_text_and_colour_chunks_survive_in_png_and_comments_in_jpeg_and_gif(tmp_path):
    picture = full_picture()
    write(picture, tmp_path / "out.png")
    again = read(tmp_path / "out.png")
    assert again.text == picture.text
    assert again.colour_chunks == picture.colour_chunks
    for suffix in (".jpg", ".gif"):
        notes = write(picture, tmp_path / f"out{suffix}")
        assert read(tmp_path / f"out{suffix}").text == (("Comment", "caf\xe9"),)
        assert any("Title" in note for note in notes)


def test_a_comment_that_a_jpeg_cannot_spell_is_left_out_with_a_note(tmp_path):
    notes = write(replace(full_picture(), text=(("Comment", "\u96ea"),)), tmp_path / "out.jpg")
    assert any("Comment" in note for note in notes)
    assert read(tmp_path / "out.jpg").text == ()


def test_an_orientation_that_comes_in_from_elsewhere_does_not_turn_the_copy(tmp_path):
    turned = replace(full_picture(), exif=exif_bytes(6))
    for suffix in CARRIES_EXIF:
        write(turned, tmp_path / f"out{suffix}")
        assert read(tmp_path / f"out{suffix}").width == turned.width


def test_what_a_format_cannot_carry_is_said(tmp_path):
    notes = " ".join(write(full_picture(), tmp_path / "out.bmp"))
    for lost in ("profile", "EXIF", "XMP", "Comment, Title"):
        assert lost in notes
    notes = " ".join(write(replace(full_picture(), icc=None), tmp_path / "out.webp"))
    assert "gamma" in notes
    assert "dpi" in notes
    assert write(replace(full_picture(), text=(), colour_chunks=()), tmp_path / "out.jpg") == ()


def test_blocks_too_long_for_a_jpeg_are_dropped_with_a_note(tmp_path):
    block, _ = with_preview("<", 1)
    long = replace(
        full_picture(), exif=block + bytes(70_000), xmp=b"x" * 70_000, text=(("Comment", "c" * 70_000),)
    )
    notes = write(long, tmp_path / "out.jpg")
    assert sum("of this length" in note for note in notes) == 2
    assert (read(tmp_path / "out.jpg").exif, read(tmp_path / "out.jpg").xmp) == (None, None)
    assert write(replace(long, colour_chunks=()), tmp_path / "out.png") == ()


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_preview_goes_and_every_other_byte_stays(order):
    block, preview = with_preview(order, 6)
    cleaned = upright_exif(b"Exif\0\0" + block)
    assert len(cleaned) == len(block)
    assert preview not in cleaned
    parsed = Image.Exif()
    parsed.load(cleaned)
    assert dict(parsed) == {0x013B: "Zoe Q"}
    assert parsed.get_ifd(0x0001) == {}
    assert cleaned.index(b"Zoe Q") == block.index(b"Zoe Q")


def test_the_preview_in_a_photograph_is_not_carried_into_the_copy(tmp_path):
    block, preview = with_preview("<", 3)
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    for suffix in CARRIES_EXIF:
        write(read(tmp_path / "a.jpg"), tmp_path / f"out{suffix}")
        written = (tmp_path / f"out{suffix}").read_bytes()
        assert preview not in written
        assert b"Zoe Q" in written


def test_xmp_becomes_upright_and_loses_its_previews():
    cleaned = upright_xmp(XMP)
    assert re.findall(rb"Orientation\D+(\d)", cleaned) == [b"1", b"1"]
    assert b"/9j/" not in cleaned
    assert cleaned.count(b"<xmpGImg:image></xmpGImg:image>") == 1
    assert upright_xmp(cleaned) == cleaned


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize(
    "garbage", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff"]
)
def test_garbage_in_exif_does_not_stop_reading_and_is_noted(tmp_path, suffix, garbage):
    Image.fromarray(pixels()).save(tmp_path / f"a{suffix}", exif=garbage)
    picture = read(tmp_path / f"a{suffix}")
    assert picture.exif is None
    assert any("EXIF" in note for note in picture.notes)
    write(picture, tmp_path / "b.png")


@given(st.binary(max_size=120), st.integers(0, 119), st.integers(0, 255))
def test_damaged_exif_is_refused_as_a_value_error_or_cleaned_in_place(tail, at, value):
    block = bytearray(with_preview("<", 6)[0] + tail)
    block[at % len(block)] = value
    try:
        cleaned = upright_exif(bytes(block))
    except ValueError:
        return
    assert len(cleaned) == len(block)
    assert upright_exif(cleaned) == cleaned


def test_a_picture_whose_exif_cannot_be_rewritten_is_written_to_tiff_without_it(tmp_path):
    broken = struct.pack("<4sI", b"II*\0", 8) + struct.pack("<HHHII", 1, 0x8769, 4, 1, 2**31) + bytes(4)
    notes = write(replace(full_picture(), exif=broken, text=()), tmp_path / "out.tif")
    assert torch.equal(read(tmp_path / "out.tif").integers, full_picture().integers)
    assert all(note.count("\n") == 0 for note in notes)


def test_content_credentials_are_noted_and_not_copied(tmp_path):
    file = BytesIO()
    Image.fromarray(pixels()).save(file, "PNG")
    first, *others = png_chunks(file.getvalue())
    store = (b"caBX", b"\0\0\0\x1ejumd" + bytes.fromhex("6332706100110010800000aa00389b71") + b"\3c2pa\0")
    signed = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in (first, store, *others))
    (tmp_path / "a.png").write_bytes(signed)
    picture = read(tmp_path / "a.png")
    assert any("C2PA" in note for note in picture.notes)
    write(picture, tmp_path / "b.png")
    assert b"c2pa" not in (tmp_path / "b.png").read_bytes()


def test_implausible_resolutions_are_ignored():
    for value in (None, 72, (0, 0), (72,), (float("nan"), 72), (1e9, 1), "ab", (72, "x"), (-1, -1)):
        assert plausible_dpi(value) is None
    assert plausible_dpi((72, 96.5)) == (72.0, 96.5)


def test_the_colour_space_is_read_from_the_profile():
    assert colour_space(ICC) == "RGB"
    assert colour_space(ICC[:30]) == colour_space(b"") == colour_space(bytes(200)) == ""
