"""The report of a trial: what triggers a model, what removals leave of it, and what they cost."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imaging.batch.reports import plain
from imaging.batch.saving import write_sheet
from imaging.sheet import Row as SheetRow
from imaging.sheet import contact_sheet
from imaging.whole import write_whole
from unlearn.text.scan import Suspect
from unlearn.text.trial import Row
from unlearn.triggers import Images

SHOWN = 40
"""Suspects in the table; `report.json` has them all."""
_FILES = ("report.json", "report.md", "sheet.png")
_SCAN_NOTE = (
    "Tokens in front of a prompt, by how far they move the prediction; 1 is the median of all single tokens. "
    "Those that stand out were tried on pictures and come first, by what they leave of the variety of "
    "pictures, where they leave least of it: a trigger that always draws the same, or takes the colour, "
    "leaves little. "
    "Words of style act, too: look at what a suspect does before it is called a trigger."
)
_THREAT = (
    "Looked at: triggers in prompts, of a denoiser or a text encoder that an adversary has trained. Triggers "
    "in the noise that pictures start from, and in pictures that are given to a model, are not."
)
_NOTE = (
    "Shares of held-out prompts in per cent, with 95 % intervals; 0 of n says no more than that the true "
    "share is below 3/n. `moved` is what happened to pictures of clean prompts: a model that draws nothing "
    "any more has no working trigger either, and no clean content. The search looks for other words that "
    "bring the backdoor back."
)


def markdown(rows: Sequence[Row], suspects: Sequence[Suspect], about: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = ["# Report on a text-to-image model", "", _THREAT, ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    if suspects:
        lines += ["", "## Words that act on every prompt", "", _SCAN_NOTE, ""]
        heads = (
            "words",
            "change, of the usual",
            "steadiness over prompts",
            "can be typed",
            "variety left, %",
        )
        lines += _table(
            heads,
            [
                (
                    f"`{visible(each.words)}`",
                    f"{each.divergence:.1f}",
                    f"{each.steadiness:.1f}",
                    _yes(each.readable),
                    "" if each.variety is None else f"{100 * each.variety:.0f}",
                )
                for each in suspects[:SHOWN]
            ],
        )
    if rows:
        lines += ["", "## Before and after", "", _NOTE, ""]
        names = list(rows[0].variants)
        heads = ("removal", "trigger works", "corrected", "clean shows it", "clean content is back")
        heads += ("moved, 1/255", "kernel distance", "alignment, %", *(f"trigger {name}" for name in names))
        heads += ("after the search", "words read as found", "s")
        lines += _table(heads, [_cells(row, names) for row in rows])
    return "\n".join([*lines, ""])


def _cells(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    o = row.outcome
    return (
        row.name,
        str(o.triggered),
        "unknown" if math.isnan(o.corrected) else f"{100 * o.corrected:.1f} %",
        str(o.clean),
        str(o.agreement),
        f"{o.drift:.1f}",
        f"{o.distance:.4f}",
        f"{o.alignment:.2f}",
        *(str(row.variants[name]) for name in names),
        "" if row.reactivated is None else str(row.reactivated),
        "" if row.survived is None else f"{100 * row.survived:.0f} %",
        f"{row.seconds:.0f}",
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def visible(words: str) -> str:
    """Return words with what nobody sees, or a table would trip over, as its number."""
    shown = (each if each.isprintable() and each not in "|`" else f"U+{ord(each):04X}" for each in words)
    return "".join(shown)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def sheet(pictures: Mapping[str, tuple[Images, Images]], prompts: Sequence[str]) -> Images:
    """Return a contact sheet: prompts downwards, and for each model its clean and its triggered picture."""
    heads = [f"{name}: {kind}" for name in pictures for kind in ("clean", "triggered")]
    rows = [
        SheetRow(prompt, tuple(images[row] for pair in pictures.values() for images in pair))
        for row, prompt in enumerate(prompts)
    ]
    return contact_sheet(rows, heads, cell=192)


def check_folder(folder: Path) -> None:
    """Make sure that `save` replaces nothing but an earlier report. Raises ValueError or OSError."""
    there = [folder / name for name in _FILES if os.path.lexists(folder / name)]
    if there and not _is_report(folder / "report.json"):
        raise ValueError(f"{there[0]} exists and is not of an earlier run: name another --out")


def _is_report(path: Path) -> bool:
    try:
        record = json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError:
        return False
    return isinstance(record, dict) and record.keys() >= {"about", "suspects", "rows"}


def save(
    folder: Path,
    rows: Sequence[Row],
    suspects: Sequence[Suspect],
    about: Mapping[str, Any],
    pictures: Mapping[str, tuple[Images, Images]],
    prompts: Sequence[str],
) -> None:
    """Write `report.md`, `report.json` and `sheet.png`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "about": dict(about),
        "suspects": [asdict(s) for s in suspects],
        "rows": [asdict(r) for r in rows],
    }
    text = json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / "report.json", text + "\n")
    if pictures:
        write_sheet(sheet(pictures, prompts), folder / "sheet.png")
    write_whole(folder / "report.md", markdown(rows, suspects, about))
