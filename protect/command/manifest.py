"""The records of a run as a table in Parquet, a row for each picture, for those who have very many."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from imaging.batch.reports import needed
from imaging.whole import whole
from protect.command.batch import Record


def check_arrow() -> None:
    """Raise ValueError with the command that helps if what writes Parquet is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError("--manifest needs pyarrow; run: pip install 'vernis[ray]'") from error


def write_manifest(records: Sequence[Record], path: Path) -> None:
    """Write one row per record, with the columns of `Record`, whole or not at all; folders are made.

    The columns have the same types whatever the run was like, so that manifests of several can be read as
    one. Raises OSError.
    """
    import pyarrow
    import pyarrow.parquet

    rows = [_text(asdict(record)) for record in records]
    table = pyarrow.Table.from_pylist(rows, schema=_schema())
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        pyarrow.parquet.write_table(table, partial)


def is_manifest(path: Path) -> bool:
    """Say whether a file is a table of records. Raises OSError."""
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
    except pyarrow.ArrowInvalid:
        return False
    return needed(Record) <= set(names)


def _schema() -> Any:
    import pyarrow

    kinds = {float: pyarrow.float64(), int: pyarrow.int64(), str: pyarrow.string()}
    special = {
        "survive": pyarrow.list_(pyarrow.string()),
        "notes": pyarrow.list_(pyarrow.string()),
        "survival": pyarrow.map_(pyarrow.string(), pyarrow.float64()),
    }
    hints = get_type_hints(Record)

    def kind(name: str) -> Any:
        # "float | None" is a column of numbers with gaps, and a Literal one of text.
        members = getattr(hints[name], "__args__", (hints[name],))
        return next((kinds[member] for member in members if member in kinds), pyarrow.string())

    return pyarrow.schema([(each.name, special.get(each.name) or kind(each.name)) for each in fields(Record)])


def _text(value: Any) -> Any:
    """File names may hold bytes that are no text; the table shows them as escapes, as the report does."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _text(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_text(each) for each in value]
    return value
