"""What is learned from partly protected sets: the measures in closed form, and a tiny run end to end."""

import json
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch

from experiments.__main__ import main
from experiments.personalisation import Row, learned_share, mixture, table
from experiments.protection import CONTROL
from imaging.io import Picture, write

pytestmark = pytest.mark.filterwarnings("default")  # matplotlib's own


def test_a_larger_share_has_all_that_a_smaller_one_protects() -> None:
    clean, protected = torch.zeros(8, 1, 2, 2), torch.ones(8, 1, 2, 2)
    chosen = [mixture(clean, protected, share)[:, 0, 0, 0] for share in (0, 25, 50, 100)]
    assert [int(each.sum()) for each in chosen] == [0, 2, 4, 8]
    assert all((more >= fewer).all() for fewer, more in pairwise(chosen))
    assert not clean.any()


def test_what_is_learned_is_a_share_of_what_clean_pictures_teach() -> None:
    row = Row("aspl", 100, 1, loss=0.8, untrained=1.0, distance=0.0, settings="")
    assert learned_share(row, 0.6) == pytest.approx(0.5)
    assert learned_share(row, 0.8) == pytest.approx(1)
    rows = [Row(CONTROL, 0, seed, 0.6, 1.0, 0.5, "") for seed in (1, 2)]
    rows += [Row("aspl", 100, 1, 0.8, 1.0, 0.5, ""), Row("aspl", 100, 2, 0.9, 1.0, 0.7, "")]
    shown = table(rows)
    assert "| nothing | 0 % | 1.0000 ± 0.0000 |" in shown
    assert "| aspl | 100 % | 0.3750 ± 0.1768 | 0.8500 ± 0.0707 | 0.6000 ± 0.1414 | 2 |" in shown
    assert "untouched model: 1.0000" in shown


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for path in paths:
        write(Picture.from_pixels(torch.rand(1, 3, 32, 32, generator=generator)), path)
    return [str(path) for path in paths]


def run(pictures: list[str], out: Path, *more: str) -> int:
    quick = ["--side", "32", "--steps", "1", "--seeds", "2", "--learning-steps", "2", "--samples", "2"]
    quick += ["--held-out", "2", "--shares", "0", "50", "100", "--methods", "photoguard", "--out", str(out)]
    with pytest.raises(SystemExit) as stopped:
        main(["personalisation", *pictures, *quick, *more])
    return stopped.value.code


def test_the_command_measures_every_mixture_and_goes_on_where_it_stopped(pictures, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert run(pictures, out, "--learning-rate", "0.003") == 0
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    control, protected = (
        product([CONTROL], (0, 100), (101, 102)),
        product(["photoguard"], (50, 100), (101, 102)),
    )
    expected = {*control, *protected}
    assert {(row["method"], row["share"], row["seed"]) for row in rows} == expected
    assert len(rows) == len(expected)
    assert len({row["untrained"] for row in rows}) == 1
    assert all(row["loss"] != row["untrained"] for row in rows)
    assert len({row["loss"] for row in rows}) == len(rows)
    assert (out / "table.md").read_text() in capsys.readouterr().out
    assert (out / "plot.png").stat().st_size > 5000
    before = (out / "rows.jsonl").read_text()
    assert run(pictures, out, "--learning-rate", "0.003") == 0
    assert (out / "rows.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--held-out", "3"], "3 of 4 pictures held out leave too few to learn"),
        (["--threat", "img2img"], "img2img trains no model"),
        (["--threat", "lowrank"], "did you mean 'low-rank'?"),
        (["--shares", "50"], "0 is among them"),
        (["--methods", "mits"], "did you mean 'mist'?"),
    ],
)
def test_a_mistake_is_one_line(pictures, tmp_path, capsys, arguments, message) -> None:
    assert run(pictures, tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("personalisation: ")
    assert message in error
