"""Records as programs read them."""

import json
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any


def write_report(records: Sequence[Any], path: Path) -> None:
    """Write dataclasses as a JSON list, whole or not at all, with the folders on the way. Raises OSError."""
    text = json.dumps(
        [_plain(asdict(record)) for record in records], indent=2, ensure_ascii=False, allow_nan=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        # File names may hold bytes that are no text; the report shows them as escapes instead of failing.
        partial.write_bytes(text.encode(errors="backslashreplace") + b"\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """JSON knows no infinity and no NaN; both become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value
