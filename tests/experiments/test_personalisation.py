"""What is learned from partly protected sets: the measures in closed form, and a tiny run end to end."""

import json
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch

from experiments.__main__ import main
from experiments.personalisation import Row, discrepancy, learned_share, mixture, table
from experiments.protection import CONTROL
from imaging.io import Picture, write

pytestmark = pytest.mark.filterwarnings("default")  # matplotlib's own


def test_the_discrepancy_is_the_average_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)
    scale = float(y.square().mean()) ** 0.5

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / scale**2 / 3 + 1) ** 3

    within = [
        sum(kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j) / pairs
        for rows, pairs in ((x, 12), (y, 20))
    ]
    across = sum(kernel(a, b) for a, b in product(x, y)) / 20
    assert discrepancy(x, y) == pytest.approx(sum(within) - 2 * across, rel=1e-4)
    assert discrepancy(7 * x, 7 * y) == pytest.approx(discrepancy(x, y), rel=1e-4)


def test_the_discrepancy_of_one_distribution_is_zero_on_average_and_grows_with_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    same = [discrepancy(*torch.randn(2, 6, 8, generator=generator)) for _ in range(2000)]
    assert sum(same) / len(same) == pytest.approx(0, abs=0.05)
    x, y = torch.randn(2, 50, 8, generator=generator)
    assert discrepancy(x, y) < discrepancy(x + 0.5, y) < discrepancy(x + 1, y)
    with pytest.raises(ValueError, match="two samples and two references"):
        discrepancy(x[:1], y)


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
