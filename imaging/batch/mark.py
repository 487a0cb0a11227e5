"""The mark in a finished file: a fingerprint of input and settings, by which a second run knows its work.

It is a hash, so it tells nobody the method, the seed or the original; and it lies in the file, so it
survives moving and renaming.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from imaging.formats import format_of
from imaging.picture import Picture

KEYWORD = "Vernis"
_PREFIX = "vernis:"
_NOTE = '<rdf:Description rdf:about="" xmlns:vernis="urn:vernis:protect:" vernis:made="{}"/>'
_NOTES = re.compile(re.escape(_NOTE).replace(r"\{\}", r"[^\"]*").encode())
_LINE = re.compile(re.escape(_PREFIX) + "[0-9a-f]{64}\n?")
_PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"></rdf:RDF></x:xmpmeta>'
)
_END = b"</rdf:RDF>"


def fingerprint(data: bytes, settings: Mapping[str, Any]) -> str:
    """Return a mark that changes with any byte of the input and any of the settings, which JSON can write."""
    canonical = json.dumps(settings, sort_keys=True, allow_nan=False).encode()
    return (
        _PREFIX
        + hashlib.sha256(hashlib.sha256(canonical).digest() + hashlib.sha256(data).digest()).hexdigest()
    )


def marked(picture: Picture, mark: str, path: Path) -> Picture:
    """Return the picture with the mark where the format of `path` has room, beside what is there already.

    PNG gets a text field, GIF a comment, the others an entry in their XMP packet; BMP has no room and stays
    unmarked.
    """
    carries = format_of(path).carries
    if "text" in carries:
        others = tuple(item for item in picture.text if item[0] != KEYWORD)
        return replace(picture, text=(*others, (KEYWORD, mark)))
    if "xmp" in carries:
        return replace(picture, xmp=_with_note(picture.xmp or _PACKET, mark))
    if "comment" in carries:
        return replace(picture, text=_with_line(picture.text, mark))
    return picture


def has_room(path: Path) -> bool:
    """Say whether the format of `path` can hold a mark."""
    return bool(format_of(path).carries & {"text", "xmp", "comment"})


def bears(path: Path, mark: str) -> bool:
    """Say whether the file holds exactly this mark.

    Raises OSError if it cannot be read.
    """
    # Every place for it is stored uncompressed, and 64 hexadecimal digits do not occur by chance.
    return mark.encode() in path.read_bytes()


def _with_line(text: tuple[tuple[str, str], ...], mark: str) -> tuple[tuple[str, str], ...]:
    """Put the mark before the first comment, the only one that is written and not cut within 255 bytes."""
    comment = next((words for key, words in text if key == "Comment"), "")
    comment = _LINE.sub("", comment)
    return (
        ("Comment", f"{mark}\n{comment}" if comment else mark),
        *(item for item in text if item[0] != "Comment"),
    )


def _with_note(xmp: bytes, mark: str) -> bytes:
    """Add an entry at the end of an XMP packet, the same elsewhere; one of another encoding is left alone."""
    before, end, after = _NOTES.sub(b"", xmp).rpartition(_END)
    return before + _NOTE.format(mark).encode() + end + after if end else xmp
