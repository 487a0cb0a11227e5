"""No smaller picture inside the metadata shows, in the written file, what the picture was before."""

import base64
import struct
from io import BytesIO

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from imaging.io import read, write
from imaging.metadata import upright_exif, upright_xmp, without_previews
from imaging.previews import jpeg_runs, without_xmp_previews

CARRIES_EXIF = (".png", ".jpg", ".webp", ".tif", ".avif", ".heic")
ADOBE = "http://ns.adobe.com/xap/1.0/g/img/"
IMAGE, DEPTH = "http://ns.google.com/photos/1.0/image/", "http://ns.google.com/photos/1.0/depthmap/"


def photograph(width: int = 64) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (6, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, 48), Image.Resampling.BICUBIC)


def jpeg(width: int = 64, **options) -> bytes:
    file = BytesIO()
    photograph(width).save(file, "JPEG", **options)
    return file.getvalue()


def in_makers_note(preview: bytes, order: str = "<") -> bytes:
    """An EXIF block whose maker's note holds a preview, with the artist behind it."""
    note = b"MAKER\0" + bytes(9) + preview
    first, second = 8, 8 + 2 + 2 * 12 + 4
    note_at = second + 2 + 12 + 4
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", first)
    block += struct.pack(order + "HHHII", 2, 0x013B, 2, 6, note_at + len(note))
    block += struct.pack(order + "HHIII", 0x8769, 4, 1, second, 0)
    block += struct.pack(order + "HHHIII", 1, 0x927C, 7, len(note), note_at, 0)
    return block + note + b"Zoe Q\0"


def in_strips(strips: list[bytes], order: str = "<", kind: int = 4) -> bytes:
    """An EXIF block whose second directory keeps an uncompressed thumbnail in strips."""
    code, count = {3: "H", 4: "I"}[kind], len(strips)
    size = struct.calcsize(order + f"{count}{code}")
    first, second = 8, 8 + 2 + 12 + 4
    arrays_at = second + 2 + 2 * 12 + 4
    strips_at = arrays_at + (2 * size if size > 4 else 0)
    offsets = [strips_at + sum(map(len, strips[:index])) for index in range(count)]
    packed = [struct.pack(order + f"{count}{code}", *each) for each in (offsets, map(len, strips))]
    values = (
        [struct.pack(order + "I", arrays_at + index * size) for index in range(2)] if size > 4 else packed
    )
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", first)
    block += struct.pack(order + "HHHI", 1, 0x013B, 2, 4) + b"Zoe\0" + struct.pack(order + "I", second)
    block += struct.pack(order + "H", 2)
    for tag, value in zip((0x0111, 0x0117), values, strict=True):
        block += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    return block + bytes(4) + (b"".join(packed) if size > 4 else b"") + b"".join(strips)


def packet(description: str) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'{description.format(BASE64, ADOBE=ADOBE, IMAGE=IMAGE, DEPTH=DEPTH)}<dc:creator rdf:about="">Zo\xeb'
        "</dc:creator></rdf:RDF></x:xmpmeta>"
    ).encode()


PREVIEW = jpeg()
SCAN = PREVIEW[PREVIEW.index(b"\xff\xda") :]  # what precedes it, tables of the standard, is in every JPEG
PIXELS = photograph(24).tobytes()
BASE64 = base64.b64encode(PREVIEW).decode()
XMP = {
    "element": '<rdf:Description xmlns:xmpGImg="{ADOBE}"><xmpGImg:image>{}</xmpGImg:image></rdf:Description>',
    "older prefix": "<rdf:li xmlns:xapGImg='{ADOBE}'><xapGImg:image>{}</xapGImg:image></rdf:li>",
    "other prefix": '<rdf:Description xmlns:q="{ADOBE}"><q:image>{}</q:image></rdf:Description>',
    "no prefix": '<image xmlns="{ADOBE}">{}</image>',
    "undeclared": "<xapGImg:image>{}</xapGImg:image>",
    "two prefixes": '<a:image xmlns:a="{ADOBE}"/><b:image xmlns:b = "{ADOBE}" rdf:about=">">{}</b:image >',
    "nested": '<q:image xmlns:q="{ADOBE}" rdf:parseType="Resource"><rdf:value>{}</rdf:value></q:image>',
    "lines": '<q:image xmlns:q="{ADOBE}"><![CDATA[{}]]>\n</q:image>',
    "attribute": '<rdf:Description xmlns:GImage="{IMAGE}" GImage:Mime="image/jpeg" GImage:Data="{}"/>',
    "depth": "<rdf:Description xmlns:d='{DEPTH}'\n d:Data = '{}' d:Near=\"1\"/>",
    "depth element": '<rdf:li xmlns:GDepth="{DEPTH}"><GDepth:Data>{}</GDepth:Data></rdf:li>',
    "no end": '<rdf:Description xmlns:q="{ADOBE}"><q:image>{}',
}
EXIF = {
    "makers note": (in_makers_note(PREVIEW), SCAN),
    "makers note, big-endian": (in_makers_note(PREVIEW, ">"), SCAN),
    "uncompressed": (in_strips([PIXELS]), PIXELS),
    "uncompressed in strips": (in_strips([PIXELS[:999], PIXELS[999:]], ">", 3), PIXELS),
}


def assert_nothing_of(secret: bytes, data: bytes) -> None:
    pieces = [secret[at : at + 24] for at in range(0, len(secret) - 24, 24)]
    left = [piece for piece in pieces if len(set(piece)) > 8 and piece in data]
    assert not left, f"{len(left)} of {len(pieces)} pieces are still there"


@pytest.mark.parametrize("kind", EXIF)
def test_no_preview_in_exif_reaches_the_written_file(tmp_path, kind):
    exif, secret = EXIF[kind]
    photograph().save(tmp_path / "a.png", exif=exif)
    picture = read(tmp_path / "a.png")
    assert any("previews in its EXIF data" in note for note in picture.notes)
    for suffix in CARRIES_EXIF:
        write(picture, tmp_path / f"out{suffix}")
        written = (tmp_path / f"out{suffix}").read_bytes()
        assert_nothing_of(secret, written)
        assert b"Zoe" in written
        assert not any("preview" in note for note in read(tmp_path / f"out{suffix}").notes)


@pytest.mark.parametrize("kind", XMP)
def test_no_preview_in_xmp_reaches_the_written_file(tmp_path, kind):
    photograph().save(tmp_path / "a.jpg", xmp=packet(XMP[kind]))
    picture = read(tmp_path / "a.jpg")
    assert any("previews in its XMP data" in note for note in picture.notes)
    for suffix in CARRIES_EXIF:
        write(picture, tmp_path / f"out{suffix}")
        written = (tmp_path / f"out{suffix}").read_bytes()
        assert_nothing_of(BASE64.encode(), written)
        assert kind == "no end" or "Zo\xeb".encode() in written


@pytest.mark.parametrize("kind", sorted(set(XMP) - {"no end"}))
def test_emptying_an_xmp_packet_takes_away_the_picture_alone(kind):
    cleaned = upright_xmp(packet(XMP[kind]))
    assert upright_xmp(cleaned) == cleaned
    expected = packet(XMP[kind]).replace(BASE64.encode(), b"")
    for wrapping in (b"<rdf:value></rdf:value>", b"<![CDATA[]]>\n"):
        expected = expected.replace(wrapping, b"")
    assert cleaned == expected


def test_other_properties_of_the_same_name_are_left_alone():
    other = packet('<rdf:li xmlns:q="urn:q" q:image="{0}" Data="{0}"><q:image>a</q:image></rdf:li>')
    assert without_xmp_previews(other) == other


def test_a_tiff_with_a_makers_note_is_freed_of_its_preview_too(tmp_path):
    exif = Image.Exif()
    exif.load(in_makers_note(PREVIEW))
    photograph().save(tmp_path / "a.tif", exif=exif)
    assert PREVIEW in (tmp_path / "a.tif").read_bytes()
    write(read(tmp_path / "a.tif"), tmp_path / "b.tif")
    assert_nothing_of(PREVIEW, (tmp_path / "b.tif").read_bytes())


@pytest.mark.parametrize("progressive", [False, True])
def test_a_preview_with_a_preview_of_its_own_is_blanked_to_its_end(progressive):
    inner = Image.Exif()
    inner[0x8769] = {0x927C: PREVIEW}
    outer = jpeg(96, exif=inner, progressive=progressive)
    assert outer.index(b"\xff\xd9") < len(outer) // 2  # the end of the inner one
    block = in_makers_note(outer)
    at = block.index(outer)
    assert upright_exif(block) == block[:at] + bytes(len(outer)) + block[at + len(outer) :]


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_preview_that_is_cut_off_is_blanked_to_the_end_of_the_block(kept):
    cut = PREVIEW[: int(len(PREVIEW) * kept)]
    assert_nothing_of(cut, upright_exif(in_makers_note(cut)))


def test_numbers_that_look_like_the_beginning_of_a_jpeg_stay():
    for numbers in (struct.pack("<4h", -1, -40, -5, 9), b"\xff\xd8\xff\xe0\0\4abcdefgh"):
        block = in_makers_note(numbers)
        assert upright_exif(block) == block


def test_a_damaged_preview_without_an_end_is_blanked_as_far_as_it_goes():
    begun = PREVIEW[: PREVIEW.index(b"\xff\xc0")]
    block = in_makers_note(begun + b"something else")
    assert upright_exif(block) == block.replace(begun, bytes(len(begun)))


@pytest.mark.parametrize(
    "piece", ["ffd8ffe00002", "ffd8ffe0000200", "ffe00008ffd8ffe00002", "ffd8ffda00020000"]
)
def test_beginnings_of_jpegs_alone_take_no_longer_than_their_length(piece):
    assert all(
        begin < end for begin, end in jpeg_runs(b"\xff\xd8" + bytes.fromhex(piece) * 200_000 + bytes(9))
    )


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40).map(lambda each: (False, each)),
            st.binary(max_size=40).map(lambda each: (True, b"\xff\xd8\xff\xdb\0\2" + each + b"\xff\xd9")),
            st.sampled_from([(True, PREVIEW), (True, jpeg(48, progressive=True))]),
        ),
        max_size=6,
    )
)
def test_every_jpeg_is_blanked_in_place(parts):
    block = in_makers_note(b"".join(content for _, content in parts))
    cleaned = without_previews(block)
    assert len(cleaned) == len(block)
    assert list(jpeg_runs(cleaned)) == []
    begin = block.index(b"MAKER\0") + 15
    assert cleaned[:begin] == block[:begin]
    for secret, content in parts:
        if secret:
            assert cleaned[begin : begin + len(content)] == bytes(len(content))
        begin += len(content)


@given(st.binary(max_size=60), st.integers(0, 10_000), st.sampled_from(sorted(EXIF)))
def test_damaged_previews_in_exif_are_a_value_error_or_cleaned_in_place(noise, at, kind):
    block = bytearray(EXIF[kind][0])
    at %= len(block)
    block[at : at + len(noise)] = noise
    try:
        cleaned = upright_exif(bytes(block))
    except ValueError:
        return
    assert len(cleaned) == len(block)
    assert list(jpeg_runs(cleaned, 8)) == []


@given(st.binary(max_size=60), st.integers(0, 10_000), st.integers(0, 60), st.sampled_from(sorted(XMP)))
def test_xmp_that_is_malformed_or_binary_does_not_raise(noise, at, removed, kind):
    xmp = bytearray(packet(XMP[kind]))
    at %= len(xmp)
    xmp[at : at + removed] = noise
    cleaned = upright_xmp(bytes(xmp))
    assert len(cleaned) <= len(xmp)


@pytest.mark.parametrize("piece", [b"<q:image>", b"<q:image ", b'<q:image a="', b"q:image=", b"xmlns:", b"<"])
def test_an_xmp_packet_of_openings_alone_takes_no_longer_than_its_length(piece):
    assert len(upright_xmp(packet('<q:image xmlns:q="{ADOBE}"/>') + piece * 100_000)) > 0
