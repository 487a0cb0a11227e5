"""The command with engines: cut off and gone on with, its manifest, and mistakes."""

import json
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from protect.command.batch import Record
from tests.protect.engines.runs import NAMES, Result, awaited, command, random_picture, results

LONG = ("--method", "mist-textural", "--model", "builtin", "--steps", "100000", "--engine", "local")


def test_ctrl_c_says_how_many_are_done_and_leaves_no_file_of_its_own(folder: Path) -> None:
    with command("art", *LONG, "--workers", "2", "--out", "safe", "--report", "r.json") as process:
        awaited(lambda: Path("safe").exists() and len(list(Path("safe").glob(".*.lock"))) == 2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted with 0 of 5 done; the same command goes on from here\n"
    assert results("safe") == {}
    assert json.loads(Path("r.json").read_text()) == []


def test_a_killed_command_is_gone_on_with(folder: Path) -> None:
    for seed in range(40):
        random_picture(Path("art", f"{seed}.png"), seed)
    options = ("art", "--engine", "local", "--workers", "2", "--out", "safe")
    with command(*options) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    again = Result(*options)
    assert again.err.count("\n") == 1
    assert "0 done" not in again.out
    assert "0 skipped" not in again.out
    assert Result("art", "--out", "serial").code == 1
    assert results("safe") == results("serial")


def test_a_manifest_has_a_row_for_each_picture_and_the_columns_of_a_record(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert Result("art", "gone.png", "--out", "safe", "--manifest", "deep/m.parquet").code == 1
    table = parquet.read_table("deep/m.parquet")
    assert table.column_names == [each.name for each in fields(Record)]
    rows = table.to_pylist(maps_as_pydicts="strict")
    inputs = ["gone.png", *(f"art/{name}" for name in NAMES), "art/text.png"]
    assert [row["input"] for row in rows] == inputs
    assert [row["status"] for row in rows] == ["failed", *["done"] * 4, "failed"]
    assert rows[0]["error"] == "does not exist"
    assert rows[1]["linf"] == rows[1]["eps"] == 8
    assert set(rows[1]["survival"]) == {"file", "jpeg75", "half_size", "blur"}
    assert Result("art", "--out", "safe", "--manifest", "deep/m.parquet").code == 1, "replaces its like"
    Path("nothing").mkdir()
    assert Result("nothing", "--manifest", "n.parquet").code == 1
    assert parquet.read_table("n.parquet").schema == table.schema
    assert [path.name for path in Path("deep").iterdir()] == ["m.parquet"]


MISTAKES: dict[str, tuple[list[str], str]] = {
    "engine": (["--engine", "rya"], "--engine"),
    "workers": (["--engine", "local", "--workers", "0"], "--workers"),
    "workers of none": (["--workers", "2"], "--workers goes with --engine local or ray"),
    "address of none": (["--engine", "local", "--address", "auto"], "it goes with --engine ray"),
    "set": (["--method", "fsmg", "--engine", "local"], "fsmg takes all together; leave --engine out"),
    "device": (["--engine", "local", "--device", "gpu"], "device 'gpu' cannot be used"),
    "url": (["memory://art/a.png"], "memory://art/a.png is a URL; --engine ray reads and writes those"),
    "manifest": (["--manifest", "art/a.png"], "--manifest art/a.png would replace an input"),
    "manifest is other": (
        ["--manifest", "other.txt"],
        "--manifest other.txt exists and is not of an earlier",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(folder: Path, mistake: str) -> None:
    Path("other.txt").write_text("no table")
    arguments, message = MISTAKES[mistake]
    result = Result("art", *arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err
    assert len(list(Path("art").iterdir())) == 5


def test_ray_that_is_not_installed_is_one_line_with_the_command_that_helps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = Result("art", "--engine", "ray")
    assert (result.code, result.out) == (2, "")
    assert result.err == "protect: --engine ray needs Ray; run: pip install 'vernis[ray]'\n"
