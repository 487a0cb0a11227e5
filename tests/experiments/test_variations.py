"""Robust training on a poisoned set: the loss, and the command from end to end at toy size."""

import json

import numpy as np
import pytest
import torch

from distill.losses import distilled
from experiments.__main__ import main

pytestmark = pytest.mark.filterwarnings("default")  # matplotlib's own


def test_the_loss_is_its_formula_with_labels_at_their_full_weight():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 0])
    found = distilled(teacher, student, labels, share=0.3, temperature=4.0)
    for row in range(5):
        p, q = (np.exp(each[row].numpy() / 4) for each in (teacher, student))
        p, q = p / p.sum(), q / q.sum()
        divergence = (p * np.log(p / q)).sum()
        said = np.exp(student[row].numpy())
        entropy = -np.log(said[labels[row]] / said.sum())
        assert float(found[row]) == pytest.approx(0.3 * 16 * divergence + 0.7 * entropy, rel=1e-4)


def test_the_gradient_leaves_the_teacher_alone():
    student, teacher = torch.randn(2, 3, 4).unbind(0)
    student.requires_grad_()
    teacher.requires_grad_()
    distilled(teacher, student, torch.tensor([0, 1, 2])).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.fixture
def data(tmp_path):
    numbers = np.random.default_rng(0)
    parts = {
        "train_images": numbers.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8),
        "train_labels": np.arange(40) % 3,
        "test_images": numbers.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8),
        "test_labels": np.arange(12) % 3,
    }
    np.savez(tmp_path / "data.npz", **parts)
    return tmp_path / "data.npz"


def _run(*arguments):
    with pytest.raises(SystemExit) as found:
        main(["variations", *map(str, arguments)])
    return found.value.code


def test_every_training_has_a_row_and_a_second_run_measures_nothing_again(data, tmp_path, capsys):
    out = tmp_path / "out"
    given = ("--data", data, "--epochs", 1, "--ratio", 0.2, "--steps", 1, "--out", out, "--batch", 20)
    assert _run(*given, "--t", 2) == 0
    rows = json.loads((out / "rows.json").read_text())["rows"]
    assert [(row["name"], row["t"]) for row in rows] == [
        ("plain training", 0),
        ("distillation alone", 0),
        ("variations, labels", 2),
        ("variations and distillation", 2),
    ]
    assert all(row["clean"]["of"] == 12 and row["attack"]["of"] == 8 for row in rows)
    assert "| variations and distillation | 2 |" in (out / "table.md").read_text()
    assert (out / "plot.png").exists()
    with np.load(out / "poisoned.npz") as poisoned, np.load(out / "variations_2.npz") as varied:
        assert np.array_equal(poisoned["labels"], varied["labels"])
        assert (poisoned["labels"] == 0).sum() == 14 + 8
        assert 0 < np.abs(poisoned["images"].astype(int) - varied["images"]).mean() < 30
    written = (out / "rows.json").stat().st_mtime_ns
    capsys.readouterr()
    assert _run(*given, "--t", 2) == 0
    assert capsys.readouterr().err == ""
    assert (out / "rows.json").stat().st_mtime_ns == written
    assert _run(*given, "--t", 2, "--seed", 1) == 1
    assert "written with other settings" in capsys.readouterr().err


def test_a_set_without_marked_pictures_is_refused(data, tmp_path, capsys):
    assert _run("--data", data, "--ratio", 0.001, "--out", tmp_path / "out") == 1
    assert "0 of 40 pictures" in capsys.readouterr().err
