"""The columns of the tables, their doubts, and the table itself."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from attacks.evaluate import Record, Row
from distill.classifier import Classifier
from experiments import robustness, tables
from experiments.__main__ import main

pytestmark = pytest.mark.filterwarnings("default")  # of AutoAttack


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Thirty pictures and a small random classifier."""
    root = tmp_path_factory.mktemp("world")
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    np.savez(root / "toy.npz", images=images, labels=np.arange(30) % 10)
    torch.manual_seed(0)
    Classifier("resnet8").save(root / "net.safetensors")
    return root


def run(world, out, *more):
    flags = [
        "--classifier",
        str(world / "net.safetensors"),
        "--data",
        str(world / "toy.npz"),
        "--out",
        str(out),
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["robustness", *flags, *more])
    return stopped.value.code


@pytest.mark.slow
def test_every_column_lands_in_the_report_and_the_table(world, tmp_path, capsys):
    out = tmp_path / "trades-1"
    some = ("--images", "20", "--autoattack-images", "10", "--apgd-images", "15", "--eps", "4")
    assert run(world, out, *some, "--attack", *robustness.ATTACKS) == 0
    report = json.loads((out / "report.json").read_text())
    rows = {row["attack"]: row for row in report["rows"]}
    assert list(rows) == ["null", *robustness.ATTACKS]
    assert {name: row["images"] for name, row in rows.items()} == {
        **dict.fromkeys(("null", *robustness.COLUMNS), 20),
        "autoattack": 10,
        "apgd": 15,
    }
    assert all(row["linf"] <= 4 + 1e-3 for row in rows.values())
    assert report["figures"]["clean"] == pytest.approx(100 * rows["null"]["average"])
    capsys.readouterr()
    assert tables.main([str(out / "report.json")]) == 0
    assert capsys.readouterr().out.startswith(
        "| method | seeds | clean | FGSM | PGD-SAT | PGD-TRADES | CW | APGD | AA |"
    )


def test_a_stopped_run_goes_on(world, tmp_path, monkeypatch):
    assert run(world, tmp_path, "--attack", "pgd-sat", "--images", "10") == 0
    before = (tmp_path / "records.jsonl").read_text()
    monkeypatch.setattr(robustness, "pgd", None)  # nothing is left to attack
    assert run(world, tmp_path, "--attack", "pgd-sat", "--images", "10") == 0
    assert (tmp_path / "records.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "31"], "there are 30 test images; asked for 31"),
        (["--eps", "0"], "eps is in steps of 1/255, such as 8; got 0"),
        (["--data", "nowhere"], "nowhere holds no test pictures"),
        (["--classifier", "absent.safetensors"], "there are no weights absent.safetensors"),
    ],
)
def test_mistakes_are_one_line_and_a_code(world, tmp_path, capsys, flags, message):
    assert run(world, tmp_path, "--attack", "fgsm", *flags) == 1
    assert message in capsys.readouterr().err.strip()


class Saturated(nn.Module):
    """A robust linear rule whose logits are ten thousand times too large for a gradient."""

    def __init__(self, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(12, 4), scale

    def forward(self, images):
        return self.scale * self.linear(images.flatten(1))


def test_the_columns_expose_logits_without_a_gradient():
    """What defensive distillation does: the cross-entropy sees nothing, the margin and AutoAttack do."""
    torch.manual_seed(0)
    model = Saturated(3e4)
    images = torch.rand(64, 3, 2, 2)
    labels = model(images).argmax(1)
    attacks = robustness.columns(model, 0.25, 64)
    left = {
        name: float((model(attacks[name](images, labels)).argmax(1) == labels).float().mean())
        for name in ("pgd-sat", "cw", "autoattack")
    }
    assert left["pgd-sat"] > 0.8
    assert left["cw"] < left["pgd-sat"] - 0.3
    assert left["autoattack"] < left["pgd-sat"] - 0.3
    rows = [row(name, share) for name, share in left.items()]
    assert any("the cross-entropy is masked" in doubt for doubt in robustness.doubts_of(rows))


def row(name, share, images=1000):
    width = 1.96 * (share * (1 - share) / images) ** 0.5
    return Row(name, images, 1, share, share, share, (width,) * 3, 8.0, 1.0, None, 1.0)


def test_an_honest_order_of_columns_raises_no_doubt():
    shares = {"null": 0.8, "fgsm": 0.55, "pgd-sat": 0.5, "pgd-trades": 0.51, "cw": 0.48, "autoattack": 0.46}
    assert robustness.doubts_of([row(*each) for each in shares.items()]) == []
    shares["pgd-sat"] = 0.7
    doubts = robustness.doubts_of([row(*each) for each in shares.items()])
    assert any(doubt.startswith("pgd-sat leaves more than fgsm") for doubt in doubts)
    assert any(doubt.startswith("autoattack leaves 24 points less") for doubt in doubts)


def test_figures_are_the_weighted_and_the_harmonic_means():
    found = robustness.figures([row("null", 0.8), row("pgd-sat", 0.5), row("autoattack", 0.4)])
    assert found["w pgd-sat"] == pytest.approx(65)
    assert found["nrr"] == pytest.approx(2 * 80 * 40 / 120)


# ---- the table


def report(folder, **figures):
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"figures": figures, "settings": {"eps": "8.0"}}))
    return folder / "report.json"


def test_seeds_are_one_row_and_the_best_is_bold(tmp_path, capsys):
    paths = [
        report(tmp_path / "ard-1", **{"clean": 80.0, "pgd-sat": 50.0}),
        report(tmp_path / "ard-2", **{"clean": 82.0, "pgd-sat": 51.0}),
        report(tmp_path / "trades", **{"clean": 79.5, "pgd-sat": 52.0}),
    ]
    assert tables.main([*map(str, paths), "--csv", str(tmp_path / "all.csv")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| method | seeds | clean | PGD-SAT |",
        "|---|---|---|---|",
        "| ard | 2 | **81.00** ± 1.41 | 50.50 ± 0.71 |",
        "| trades | 1 | 79.50 | **52.00** |",
    ]
    assert (tmp_path / "all.csv").read_text().splitlines()[1].startswith("ard-1,80.0,,50.0")


def test_reports_of_two_radii_or_none_make_no_table(tmp_path, capsys):
    one = report(tmp_path / "a", clean=1.0)
    other = report(tmp_path / "b", clean=1.0)
    other.write_text(other.read_text().replace("8.0", "4.0"))
    assert tables.main([str(one), str(other)]) == 1
    other.write_text("{}")
    assert tables.main([str(other)]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].endswith("reports of several radii make no table: eps 4.0, 8.0")
    assert "is no report of" in printed[1]


def records(path, attack, right, settings="all"):
    lines = [
        dataclasses.asdict(Record(index, 3, attack, (3 if hit else 1,), (1,), 1, 4.0, 0.1, 0.0, settings))
        for index, hit in enumerate(right)
    ]
    with (path.parent / "records.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_methods_are_compared_on_the_same_images(tmp_path, capsys):
    """Seeds are averaged image by image; of runs on some and on all images the larger one counts."""
    one = [report(tmp_path / f"ard-{seed}", clean=50.0) for seed in (1, 2)]
    other = report(tmp_path / "trades", clean=50.0)
    records(one[0], "null", [1, 1, 1, 0])
    records(one[0], "null", [0, 0], settings="some")
    records(one[1], "null", [1, 1, 0, 0])
    records(other, "null", [0, 1, 0, 1])
    for path, right in zip((*one, other), ([1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]), strict=True):
        records(path, "pgd-sat", right)
    given = [*map(str, one), str(other)]
    assert tables.main([*given, "--less", "ard", "trades"]) == 0
    clean, robust = np.array([1, 0, 0.5, -1]), np.array([1, 0, 0.5, -1])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "| difference | clean | PGD-SAT | W PGD-SAT |",
        "|---|---|---|---|",
        "| ard less trades | "
        + " | ".join(
            f"{100 * each.mean():+.1f} ± {196 * each.std(ddof=1) / 2:.1f}"
            for each in (clean, robust, (clean + robust) / 2)
        )
        + " |",
    ]
    assert tables.main([*given, "--less", "ard", "rslad"]) == 1
    records(other, "cw", [0, 1])
    records(one[0], "cw", [0, 1, 1])
    records(one[1], "cw", [0, 1, 1])
    assert tables.main([*given, "--less", "ard", "trades"]) == 1
    bare = report(tmp_path / "mart", clean=50.0)
    assert tables.main([*given, str(bare), "--less", "ard", "mart"]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].endswith("there is no report of 'rslad'; there are ard, trades")
    assert printed[1].endswith("ard and trades were not judged on the same images")
    assert printed[2].endswith("ard and mart have no records of the same attack beside their reports")


# ---- RobustBench


EPS = 32 / 255


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_export_is_what_robustbench_measures(world, monkeypatch):
    """Clean accuracy to the digit through a wrapper of its kind, and AutoAttack as called directly."""
    from distill.classifier import load
    from experiments import robustbench

    student = load(world / "net.safetensors")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = student(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10  # one that it gets wrong
    evaluation = robustbench._robustbench()
    monkeypatch.setattr(evaluation, "load_clean_dataset", lambda *_, **__: (images, labels))

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = load(world / "net.safetensors")

        def forward(self, x):
            return self.inner(x)

    found = [robustbench.benchmark(net, eps=EPS, n_examples=4) for net in (student, Wrapper().eval())]
    assert found[0] == found[1]
    clean = float((student(images).argmax(1) == labels).float().mean())
    assert found[0][0] == pytest.approx(clean, abs=1e-9)
    direct = robustness.columns(student, EPS, 128)["autoattack"](images, labels)
    robust = float((student(direct).argmax(1) == labels).float().mean())
    assert robust < clean
    assert found[0][1] == pytest.approx(robust, abs=1e-9)


def test_the_bench_measures_the_same_step_twice():
    from experiments.bench import distill as bench

    given = SimpleNamespace(
        student="resnet8", teacher="resnet8", batch=2, device="cpu", precision="float32", repeat=1
    )
    for name, method in bench.METHODS.items():
        method = dataclasses.replace(method, steps=1)
        made = bench.Bench(method, given, torch.contiguous_format)
        moved = made.attacked_labels()
        assert 0 < float((moved - made.images).abs().max()) <= float(method.eps) + 1e-6
        ours, plain = bench.measure(method, given)
        assert min(ours, plain) > 0, name
