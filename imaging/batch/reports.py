"""Records as programs and people read them."""

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from imaging.whole import whole


def write_report(records: Sequence[Any], path: Path) -> None:
    """Write dataclasses as a JSON list, whole or not at all, with the folders on the way. Raises OSError."""
    text = json.dumps(
        [plain(asdict(record)) for record in records], indent=2, ensure_ascii=False, allow_nan=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        # File names may hold bytes that are no text; the report shows them as escapes instead of failing.
        partial.write_bytes(text.encode(errors="backslashreplace") + b"\n")


def is_report(path: Path, kind: type) -> bool:
    """Say whether a file is a report of such dataclasses, as `write_report` writes them. Raises OSError."""
    try:
        rows = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(rows, list) and all(
        isinstance(row, dict) and row.keys() >= needed(kind) for row in rows
    )


def needed(kind: type) -> set[str]:
    """Return the fields without which there is no dataclass of this kind."""
    empty = (each for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING)
    return {each.name for each in empty}


def line(record: Any, *more: str) -> str:
    """Say in one line what happened to an input; `more` is told of a picture that was done."""
    if record.status == "failed":
        return f"failed   {record.input}: {record.error}"
    if record.status == "skipped":
        return f"skipped  {record.input}: {record.output} is done already, with the same settings"
    facts = [f"change {record.linf:.3g} of 255", f"PSNR {record.psnr:.1f} dB", f"SSIM {record.ssim:.3f}"]
    facts += [*more, f"{record.seconds:.1f} s", *record.notes]
    return f"done     {record.input} -> {record.output}: {'; '.join(facts)}"


def duration(seconds: float) -> str:
    """Say how long something takes, in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def plain(value: Any) -> Any:
    """Return what JSON can say of a value: it knows no infinity and no NaN, so that both become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
