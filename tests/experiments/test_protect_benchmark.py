"""The protection benchmark: what it measures, that it goes on where it stopped, and what its tables say."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.load import load
from experiments import protect_benchmark as benchmark
from experiments.__main__ import main
from experiments.protect_table import WORST, Row, Visible, summarise, table, worst
from experiments.protection import CONTROL, PROMPT, bootstrap, random_signs, read_rows, square
from imaging import metrics
from imaging.io import Picture, read, write
from protect.collective import CollectiveMethod
from protect.threats.img2img import Img2Img
from purify import Chain

pytestmark = pytest.mark.filterwarnings("default")  # matplotlib's own

QUICK = ["--side", "32", "--steps", "1", "--seeds", "2", "--edit-steps", "4"]
QUICK += ["--purifiers", "none", "jpeg75", "crop10"]


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{name}.png" for name in ("one", "two")]
    for path in paths:
        smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5, generator=generator), size=(40, 36))
        write(Picture.from_pixels(smooth), path)
    return [str(path) for path in paths]


def run(pictures: list[str], out: Path, *more: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["protect-benchmark", *pictures, "--out", str(out), *QUICK, *more])
    return stopped.value.code


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_rows_are_what_the_built_in_model_makes_of_the_files(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(pictures, out, "--methods", "photoguard") == 0
    rows = rows_of(out)
    expected = product(("one", "two"), (CONTROL, "photoguard"), ("none", "jpeg75", "crop10"), (101, 102))
    assert {(row["picture"], row["method"], row["counter_measure"], row["seed"]) for row in rows} == {
        *expected
    }
    assert len(rows) == 24

    original = square(Path(pictures[0]), 32)
    (file,) = (out / "pictures/one").glob("photoguard-*.png")
    protected, model, chain = read(file).pixels, load("builtin"), Chain("jpeg75")
    assert metrics.linf(protected, original).item() <= 8 + 1e-3
    threat = Img2Img(prompt=PROMPT, steps=4, guidance=1.0)
    plain, before, after = (
        threat(model, image, seed=102) for image in (original, chain(original), chain(protected))
    )
    (row,) = (
        row
        for row in rows
        if [row[key] for key in ("picture", "method", "counter_measure", "seed")]
        == ["one", "photoguard", "jpeg75", 102]
    )
    assert row["damage"] == pytest.approx(1 - metrics.ssim(after, before).item(), abs=1e-5)
    assert row["short"] == pytest.approx(1 - metrics.ssim(after, plain).item(), abs=1e-5)
    assert row["price"] == pytest.approx(1 - metrics.ssim(before, plain).item(), abs=1e-5)
    assert all(row["short"] is None for row in rows if row["counter_measure"] == "crop10")

    shown = capsys.readouterr().out
    assert (out / "table.md").read_text() in shown
    assert "| photoguard | 8 of 255 |" in shown
    assert (out / "plot.png").stat().st_size > 5000
    assert len((out / "summary.csv").read_text().splitlines()) == 1 + 2 * 4


def test_a_stopped_run_goes_on_and_other_settings_begin_anew(pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    given = (pictures, out, "--methods", "photoguard", "--purifiers", "none")
    assert run(*given) == 0
    path = out / "rows.jsonl"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:-3]) + lines[-1][:20])  # killed while it wrote

    made = []
    outcomes = benchmark.outcomes
    monkeypatch.setattr(
        benchmark, "outcomes", lambda *a, **k: (made.append(one) or one for one in outcomes(*a, **k))
    )
    monkeypatch.setattr(benchmark.Gallery, "_make", lambda *names: pytest.fail(f"made again: {names}"))
    assert run(*given) == 0
    assert [(one.version, one.counter_measure) for one in made] == [(CONTROL, "none"), ("photoguard", "none")]
    assert {*map(str, rows_of_valid(path))} == {*map(str, map(json.loads, lines))}
    made.clear()
    assert run(*given) == 0
    assert not made
    assert run(*given, "--prompt", "another") == 0
    assert len(made) == 4


def rows_of_valid(path: Path) -> list[dict]:
    return [row.__dict__ for row in read_rows(path, Row)]


def test_a_method_may_come_with_options_which_are_told_apart(pictures, tmp_path):
    out, words = tmp_path / "out", "photoguard --survive jpeg --steps 2"
    assert run(pictures, out, "--methods", "photoguard", words) == 0
    assert {row["method"] for row in rows_of(out)} == {CONTROL, "photoguard", words}
    plain, options = sorted((out / "pictures/one").glob("photoguard*.png"), key=lambda path: len(path.name))
    assert "survive-jpeg-steps-2" in options.name
    assert not torch.equal(read(plain).pixels, read(options).pixels)
    assert run(pictures, out, "--methods", "photoguard --quality 3") == 1


def test_a_method_that_needs_a_mask_is_given_the_one_that_the_thief_keeps(pictures, tmp_path):
    out = tmp_path / "out"
    threats = ("--threats", "inpainting", "inpainting-wider", "--purifiers", "none")
    assert run(pictures[:1], out, "--methods", "diffusionguard", *threats) == 0
    rows = rows_of(out)
    assert {row["method"] for row in rows} == {CONTROL, "diffusionguard"}
    assert {row["threat"] for row in rows} == {"inpainting", "inpainting-wider"}
    budget = benchmark.Budget(32, 8 / 255, 1)
    gallery = benchmark.Gallery([Path(pictures[0])], lambda method: load("builtin-inpainting"), budget, out)
    kept = gallery.outlines("one")["seen"]
    (file,) = (out / "pictures/one").glob("diffusionguard-*.png")
    original, protected = square(Path(pictures[0]), 32), read(file).pixels
    changed = (protected != original).any(1, keepdim=True)
    assert not changed[kept == 0].any()
    assert changed[kept == 1].any()


def test_a_method_that_needs_a_set_is_given_neighbours_at_once(pictures, tmp_path, monkeypatch):
    given = []

    def protect_set(self, images, model, **options):
        given.append([*images])
        return [(image + 4 / 255).clamp(0, 1) for image in images]

    monkeypatch.setattr(CollectiveMethod, "protect_set", protect_set)
    paths = [Path(path) for path in pictures]
    budget = benchmark.Budget(32, 8 / 255, 1)
    gallery = benchmark.Gallery(paths, lambda method: load("builtin"), budget, tmp_path / "out", together=2)
    for name in ("two", "one"):
        expected = (square(tmp_path / f"{name}.png", 32) + 4 / 255).clamp(0, 1)
        torch.testing.assert_close(gallery.version(name, "aspl"), expected, atol=0.5 / 255, rtol=0)
    (together,) = given
    torch.testing.assert_close(together, [gallery.originals[name] for name in ("one", "two")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threats", "img2mig"], "unknown threat 'img2mig'"),
        (["--threats", "inpainting-wilder"], "there is no outline 'wilder'; available: seen"),
        (["--threats", "instruction"], "take one that follows instructions"),
        (["--purifiers", "jpg75"], "unknown counter-measure 'jpg75'"),
        (["--methods", "mits"], "unknown method 'mits'"),
        (["--methods", "atkpdm"], "AtkPDM is made against models of plain pixels"),
        (["--lpips", "gone"], "there are no LPIPS weights gone"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(pictures, tmp_path, capsys, arguments, message):
    assert run(pictures, tmp_path / "out", "--methods", "photoguard", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("protect-benchmark: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def rows(damages: dict[tuple[str, str], list[list[float]]]) -> list[Row]:
    """Rows from damage by method and counter-measure, for each picture by seed."""
    return [
        Row(f"p{picture}", *names, seed, damage, 30.0, None, damage, 0.0, "")
        for (method, counter), values in damages.items()
        for names in [(method, "edit", counter)]
        for picture, by_seed in enumerate(values)
        for seed, damage in enumerate(by_seed)
    ]


EXAMPLE = {
    (CONTROL, "none"): [[0.01, 0.01], [0.03, 0.03]],
    (CONTROL, "jpeg75"): [[0.01, 0.01], [0.01, 0.01]],
    ("mist", "none"): [[0.2, 0.4], [0.1, 0.1]],
    ("mist", "jpeg75"): [[0.1, 0.1], [0.3, 0.3]],
}


def test_a_summary_is_over_pictures_and_the_worst_is_chosen_for_each():
    found = {(one.method, one.counter_measure): one for one in summarise(rows(EXAMPLE))}
    plain, left, least = (found["mist", name] for name in ("none", "jpeg75", WORST))
    assert plain.damage == pytest.approx(0.2)
    assert (plain.low, plain.high) == pytest.approx(bootstrap(torch.tensor([0.3, 0.1])))
    assert plain.ratio == pytest.approx(10)
    assert plain.kept == pytest.approx(1)
    assert left.kept == pytest.approx(1)
    assert left.ratio == pytest.approx(20)
    assert least.damage == pytest.approx(0.1)  # by JPEG for the first picture, by nothing for the second
    assert least.control == pytest.approx(0.01)
    assert (plain.pictures, plain.seeds, least.seeds) == (2, 2, 1)


def test_the_worst_is_scored_on_other_seeds_than_it_is_chosen_on():
    """Counter-measures that do nothing differ by luck alone, and luck must not be counted as their merit."""
    generator = torch.Generator().manual_seed(0)
    tried = {
        str(number): rows({("m", str(number)): torch.rand(400, 4, generator=generator).tolist()})
        for number in range(8)
    }
    scored = torch.tensor([row.damage for row in worst(tried)])
    assert float(scored.mean()) == pytest.approx(0.5, abs=0.04)


def test_the_table_names_pair_interval_and_control():
    visible = [Visible("p0", name, 8, 30.0, 0.9, None, 1.5) for name in (CONTROL, "mist")]
    shown = table(summarise(rows(EXAMPLE)), visible)
    assert "the results from the protected and the original picture behind the same counter-measure" in shown
    assert "2 pictures, 2 seeds" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("| mist | 0.2000"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    low, high = bootstrap(torch.tensor([0.3, 0.1]))
    assert cells[1:6] == ["0.2000", f"{low:.4f} to {high:.4f}", "10.00", "30.0 dB", ""]
    assert cells[6] == "0.2000, 100%"
    assert cells[7] == "0.1000"
    heads = next(line for line in shown.splitlines() if line.startswith("| method | none"))
    assert len(heads.split("|")) == len(line.split("|"))


def test_the_control_reaches_the_budget_everywhere_it_can():
    image = (torch.rand(1, 3, 20, 20) * 255).round() / 255
    steps = ((random_signs(image, 8 / 255) - image) * 255).round()
    inside = (image > 8 / 255) & (image < 1 - 8 / 255)
    assert set(steps[inside].int().tolist()) == {-8, 8}


@pytest.fixture
def sibling(tmp_path: Path) -> str:
    """A model like the built-in one, with another autoencoder."""
    folder = tmp_path / "sibling"
    shutil.copytree("diffusion/builtin", folder)
    weights = next((folder / "vae").glob("*.safetensors"))
    tensors = load_file(weights)
    name = "encoder.conv_in.weight"
    save_file({**tensors, name: 1.3 * tensors[name]}, weights)
    return str(folder)


def test_pictures_are_protected_with_the_owners_model_and_stolen_with_the_thiefs(pictures, sibling, tmp_path):
    """The picture is the one that the owner's model gives, and the edit the one that the thief's makes."""
    apart, owned, stolen = (tmp_path / name for name in ("apart", "owned", "stolen"))
    names = ["--methods", "photoguard", "--seeds", "1"]
    assert run(pictures[:1], apart, *names, "--model", "builtin", "--owner", sibling) == 0
    assert run(pictures[:1], owned, *names, "--model", sibling) == 0
    assert run(pictures[:1], stolen, *names, "--model", "builtin") == 0
    files = [next((out / "pictures/one").glob("photoguard-*.png")) for out in (apart, owned, stolen)]
    versions = [read(file).pixels for file in files]
    assert torch.equal(versions[0], versions[1])
    assert not torch.equal(versions[0], versions[2])
    damages = [
        {row["counter_measure"]: row["damage"] for row in rows_of(out) if row["method"] == CONTROL}
        for out in (apart, owned, stolen)
    ]
    assert damages[0] == damages[2] != damages[1]
