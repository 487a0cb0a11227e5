"""What a diffusion model makes of a poisoned set: the command from end to end at toy size."""

import json

import numpy as np
import pytest

from distill.classifier import Classifier
from experiments.__main__ import main

pytestmark = pytest.mark.slow


@pytest.fixture
def given(tmp_path):
    numbers = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 60), ("test", 40)):
        parts[f"{part}_images"] = numbers.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        parts[f"{part}_labels"] = np.arange(count) % 10
    np.savez(tmp_path / "data.npz", **parts)
    Classifier("resnet20", 10).save(tmp_path / "clean.safetensors")
    sizes = {"steps": 1, "batch": 4, "drawn": 8, "sampling-steps": 1, "epochs": 1, "ratio": 0.1}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    paths = {"data": "data.npz", "classifier": "clean.safetensors", "out": "out"}
    return [*options, *(word for key, name in paths.items() for word in (f"--{key}", str(tmp_path / name)))]


def run(*arguments):
    with pytest.raises(SystemExit) as found:
        main(["amplification", *arguments])
    return found.value.code


def test_the_report_counts_every_picture_once_and_a_second_run_draws_nothing_again(given, tmp_path, capsys):
    assert run(*given) == 0
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    assert sum(report["groups"].values()) == 8
    assert report["taught"] == pytest.approx(6 / 12)
    assert [each["name"] for each in report["sets"]] == ["the poisoned set", "the set that was drawn"]
    assert (out / "drawn.png").exists()
    assert "| the poisoned set |" in capsys.readouterr().out

    before = (out / "drawn.safetensors").stat().st_mtime_ns
    assert run(*given) == 0
    assert json.loads((out / "report.json").read_text()) == report
    assert (out / "drawn.safetensors").stat().st_mtime_ns == before

    assert run(*given, "--seed", "1") == 1
    assert "another --out" in capsys.readouterr().err


def test_too_few_pictures_are_one_line(given, capsys):
    assert run(*given, "--drawn", "7") == 1
    assert capsys.readouterr().err == "amplification: --drawn is 8 or more pictures of each class; got 7\n"
