"""Forgetting a class from the command line, at toy size."""

import json

import numpy as np
import pytest
import torch

from distill.classifier import Classifier
from experiments.__main__ import main


@pytest.fixture
def given(tmp_path):
    torch.manual_seed(0)
    Classifier("resnet20").save(tmp_path / "judge.safetensors")
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 10)
    return ("--classifier", tmp_path / "judge.safetensors", "--data", tmp_path / "data.npz")


def _run(*arguments):
    with pytest.raises(SystemExit) as found:
        main(["forget", *map(str, arguments)])
    return found.value.code


def test_the_report_counts_what_was_asked_for(given, tmp_path, capsys):
    out = tmp_path / "out"
    small = ("--drawn", 3, "--steps", 1, "--batch", 2, "--sampling-steps", 1, "--forget", 2, "--override", 5)
    assert _run(*given, *small, "--out", out) == 0
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["1 steps", "one step", "one step, after forgetting"]
    assert all(row["forgotten"]["of"] == 3 and row["remaining"]["of"] == 27 for row in rows)
    assert rows[1]["distance"] != rows[2]["distance"]
    assert (out / "samples.png").exists()
    assert "one step, after forgetting" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--model", "builtin"), "not told a class"), (("--override", 0), "its own place")],
)
def test_what_cannot_be_forgotten_is_refused(given, tmp_path, capsys, arguments, message):
    assert _run(*given, *arguments, "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
