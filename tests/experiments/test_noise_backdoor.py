"""Planting, finding and removing a trigger in the noise from the command line, at toy size."""

import json

import numpy as np
import pytest

from experiments.__main__ import main


@pytest.fixture
def data(tmp_path):
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(20) % 10)
    return tmp_path / "data.npz"


def _run(*arguments):
    with pytest.raises(SystemExit) as found:
        main(["noise-backdoor", *map(str, arguments)])
    return found.value.code


def test_every_model_is_judged_on_the_same_noise(data, tmp_path, capsys):
    out = tmp_path / "out"
    small = ("--steps", 1, "--inversion-steps", 1, "--removal-steps", 1, "--batch", 2)
    drawn = ("--drawn", 2, "--sampling-steps", 1, "--target", 3)
    assert _run("--data", data, *small, *drawn, "--out", out) == 0
    record = json.loads((out / "report.json").read_text())
    names = ["untouched", "planted", "trigger known", "trigger found", "noise with what was found"]
    assert [row["name"] for row in record["rows"]] == names
    assert [row["moved"] == 0 for row in record["rows"]] == [True, False, False, False, False]
    assert all(row["triggered"]["of"] == 2 for row in record["rows"])
    assert record["rows"][1]["error"] != record["rows"][4]["error"]
    assert record["found"]["true norm"] == pytest.approx((3 * 14**2) ** 0.5, rel=1e-4)
    assert (out / "samples.png").exists()
    assert (out / "table.md").read_text() == capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--model", "builtin"), "not told a class"), (("--box", 40), "has 1 to 32; got 40")],
)
def test_what_cannot_be_planted_is_refused(data, tmp_path, capsys, arguments, message):
    assert _run("--data", data, *arguments, "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
