"""Folders of real and generated pictures, as published sets lay them out, read into one list.

A set is known by its paths alone: each layout is a pattern of the path below the root. What a pattern does
not match, such as the stored maps beside the pictures of two of the layouts, is no picture of the set.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imaging.formats import PICTURE_SUFFIXES

_SPLIT = r"(?P<split>train|val|test)"

LAYOUTS: dict[str, str] = {
    "genimage": r"(?P<source>[^/]+)/(?P<split>train|val)/(?P<label>nature|ai)/.+",
    "cnndetection": _SPLIT + r"/(?P<source>.+?)/(?P<label>0_real|1_fake)/.+",
    "diffusionforensics": rf"images/{_SPLIT}/(?P<set>[^/]+)/(?P<label>[^/]+)/[^/]+",
    "distildire": _SPLIT + r"/images/(?P<label>reals|fakes)/.+",
    "cifake": _SPLIT + r"/(?P<label>REAL|FAKE)/.+",
    "folders": rf"(?:{_SPLIT}/)?(?P<label>real|generated)/(?:(?P<source>[^/]+)/)?.+",
}
"""Patterns by name: GenImage; CNNDetection, UniversalFakeDetect and DIRE's classifier; DiffusionForensics;
DistilDIRE; CIFAKE; and plain `real/`, `generated/` or `generated/GENERATOR/`, below a split or not."""

GROUPS = "groups.csv"
"""File below the root with columns `path` and `group`, for pictures that descend from one another."""

_REAL = {"nature", "0_real", "real", "reals"}


class LayoutError(ValueError):
    """A folder that is no set of real and generated pictures."""


@dataclass(frozen=True)
class Sample:
    """One picture of a set."""

    path: Path
    name: str
    """The path below the root, with its suffix and every dot: features are kept under it."""
    generated: bool
    split: str | None
    """train, val, test, or None where the set has no splits."""
    source: str | None = None
    """The generator or subset, where the layout names it."""
    group: str | None = None
    """What `groups.csv` says: a common real parent, or prompt and seed."""


@dataclass(frozen=True)
class PictureSet:
    """The pictures of a folder, and how it was read."""

    layout: str
    samples: list[Sample]
    unmatched: int
    """Picture files that belong to no part of the layout."""


def read_layout(root: str | Path) -> PictureSet:
    """Read the set of pictures below a folder; the layout is the one that most paths match.

    Raises:
        LayoutError: the folder does not exist, holds no pictures, or is laid out in none of these ways.
    """
    root = Path(root)
    if not root.is_dir():
        raise LayoutError(f"{str(root)!r} is no folder")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    names = [path.relative_to(root).as_posix() for path in found if path.is_file()]
    if not names:
        raise LayoutError(f"{str(root)!r} holds no pictures")
    layout, matches = _best(names)
    if not matches:
        raise LayoutError(
            f"{str(root)!r} has no layout that is known: put pictures into real/ and generated/, below "
            "train/ and test/ where there are splits"
        )
    groups = _groups(root / GROUPS)
    samples = [_sample(root, name, match, groups) for name, match in matches.items()]
    return PictureSet(layout, samples, len(names) - len(matches))


def _best(names: Sequence[str]) -> tuple[str, dict[str, re.Match[str]]]:
    counts = Counter({layout: 0 for layout in LAYOUTS})
    matched: dict[str, dict[str, re.Match[str]]] = {}
    for layout, pattern in LAYOUTS.items():
        tried = ((name, re.fullmatch(pattern, name)) for name in names)
        matched[layout] = {name: match for name, match in tried if match}
        counts[layout] = len(matched[layout])
    layout = counts.most_common(1)[0][0]
    return layout, matched[layout]


def _sample(root: Path, name: str, match: re.Match[str], groups: dict[str, str]) -> Sample:
    parts = match.groupdict()
    generated = parts["label"].lower() not in _REAL
    # in DiffusionForensics the folder of generated pictures is the generator's name
    source = parts.get("source") or (parts["label"] if "set" in parts and generated else parts.get("set"))
    return Sample(root / name, name, generated, parts.get("split"), source, groups.get(name))


def _groups(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"path", "group"} <= set(reader.fieldnames or ()):
            raise LayoutError(f"{str(path)!r} needs the columns path and group")
        return {row["path"]: row["group"] for row in reader}
