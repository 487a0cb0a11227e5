"""The mark in a protected file: where each format keeps it, and that nothing else is lost."""

from pathlib import Path

import pytest
import torch

from imaging.batch.mark import bears, fingerprint, marked
from imaging.formats import PICTURE_SUFFIXES
from imaging.io import Picture, read, write

MARK = fingerprint(b"the file", {"eps": 8})
OTHER = fingerprint(b"the file", {"eps": 9})
XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""/>'
    b'</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def picture(**facts) -> Picture:
    return Picture(torch.randint(0, 256, (1, 3, 40, 40)).to(torch.uint8), **facts)


def test_a_fingerprint_changes_with_the_input_and_every_setting() -> None:
    assert fingerprint(b"the file", {"eps": 8}) == MARK
    assert len({MARK, OTHER, fingerprint(b"the filf", {"eps": 8}), fingerprint(b"", {})}) == 4


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES - {".bmp", ".dib"}))
def test_every_format_but_bmp_bears_the_mark(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(marked(picture(xmp=XMP), MARK, path), path)
    assert bears(path, MARK)
    assert not bears(path, OTHER)


def test_bmp_has_no_room_and_stays_as_it_is(tmp_path: Path) -> None:
    original = picture()
    assert marked(original, MARK, tmp_path / "a.bmp") is original


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".avif"])
def test_an_xmp_packet_keeps_every_byte_beside_the_mark(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(marked(picture(xmp=XMP), MARK, path), path)
    xmp = read(path).xmp
    assert xmp is not None
    before, _, after = xmp.partition(b'<rdf:Description rdf:about="" xmlns:vernis')
    assert before + after.partition(b"/>")[2] == XMP


def test_png_texts_and_gif_comments_stay_beside_the_mark(tmp_path: Path) -> None:
    texts = (("Author", "Ada"), ("Comment", "x" * 400))
    write(marked(picture(text=texts), MARK, tmp_path / "a.png"), tmp_path / "a.png")
    assert set(read(tmp_path / "a.png").text) == {*texts, ("Vernis", MARK)}
    write(marked(picture(text=texts), MARK, tmp_path / "a.gif"), tmp_path / "a.gif")
    assert read(tmp_path / "a.gif").text == (("Comment", f"{MARK}\n{'x' * 400}"),)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif"])
def test_a_new_mark_replaces_an_old_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(marked(picture(text=(("Comment", "mine"),)), MARK, path), path)
    write(marked(read(path), OTHER, path), path, overwrite=True)
    assert bears(path, OTHER)
    assert not bears(path, MARK)
    assert suffix == ".jpg" or "mine" in dict(read(path).text)["Comment"]


def test_an_unusual_packet_is_left_alone(tmp_path: Path) -> None:
    assert marked(picture(xmp=b"<other/>"), MARK, tmp_path / "a.jpg").xmp == b"<other/>"
