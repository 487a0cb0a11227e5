"""Privacy distillation: the command from end to end at toy size."""

import json

import numpy as np
import pytest

from experiments.__main__ import main

pytestmark = pytest.mark.slow


@pytest.fixture
def given(tmp_path):
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (90, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", test_images=images, test_labels=np.arange(90) % 10)
    sizes = {"private": 20, "judged": 30, "false-matches": 0.1, "reidentifier-epochs": 1, "steps": 1}
    sizes |= {"batch": 4, "drawn": 2, "sampling-steps": 1, "epochs": 1}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    return [*options, "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "out")]


def run(*arguments):
    with pytest.raises(SystemExit) as found:
        main(["privacy", *arguments])
    return found.value.code


def test_every_row_has_its_risk_and_the_second_model_saw_what_was_kept_alone(given, tmp_path, capsys):
    assert run(*given) == 0
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [row["pictures"] for row in rows[:3]] == [20, 20, 20]
    kept, made = rows[3], rows[2]
    assert kept["risk"]["share"] == 0
    assert kept["pictures"] == round(20 * (1 - made["risk"]["share"]))
    assert rows[0]["accuracy"] is None
    assert all(0 <= row["accuracy"]["share"] <= 1 for row in rows[1:])
    assert "| drawn by the second model |" in capsys.readouterr().out

    before = (tmp_path / "out" / "second.safetensors").stat().st_mtime_ns
    assert run(*given) == 0
    assert (tmp_path / "out" / "second.safetensors").stat().st_mtime_ns == before


def test_too_few_pictures_are_one_line(given, capsys):
    assert run(*given, "--private", "80") == 1
    assert "leave none for the threshold" in capsys.readouterr().err
