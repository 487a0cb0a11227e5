"""The command `detect`: files in, answers out, one line for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import detect
from detect.calibration import Calibration
from detect.cli import app
from detect.detector import create
from detect.heat import overlay
from detect.inputs import pictures_of


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Detectors in folders: one fitted to drawn pictures, one of reconstruction, calibrated by hand."""
    folder = tmp_path_factory.mktemp("detectors")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 48, 48, generator=generator)
    images[20:] = images[20:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    frequency = create("frequency")
    frequency.learn(images, torch.tensor([0] * 20 + [1] * 20))
    frequency.sides, frequency.trained_on = (48, 64), "drawn pictures"
    reconstruction = create("reconstruction")
    for made in (frequency, reconstruction):
        made.calibration = Calibration(1.0, 0.0, 0.3, 0.7, 20, 20, "drawn pictures")
        made.save(folder / made.kind)
    create("frequency").save(folder / "uncalibrated")
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(name: str, seed: int = 0, side: int = 48, doubled: bool = False) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    if doubled:
        pixels = pixels[::2, ::2].repeat(2, 0).repeat(2, 1)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(name)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_needs_nothing_heavy():
    code = "import sys; from detect.cli import app; app(['--help'], standalone_mode=False);"
    code += "assert not {'torch', 'PIL', 'sklearn', 'diffusers'} & set(sys.modules)"
    root = Path(__file__).parents[2]
    finished = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "--heatmap" in finished.stdout


def test_answering_needs_none_of_the_optional_packages():
    code = "import sys, detect; detect.load, detect.create('frequency'); import detect.batch, detect.builtin;"
    code += "assert not {'sklearn', 'scipy', 'torchvision', 'diffusers'} & set(sys.modules)"
    root = Path(__file__).parents[2]
    finished = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_the_public_names_are_there():
    assert dir(detect)
    for name in detect.__all__:
        assert getattr(detect, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'clair'"):
        detect.clair  # noqa: B018


def test_pictures_are_answered_and_recorded(kept):
    noise("a.png")
    noise("b.png", seed=1, doubled=True)
    done = run(
        "a.png", "b.png", "--detector", str(kept / "frequency"), "--explain", "--report", "report.json"
    )
    assert done.exit_code == 0, done.output
    assert "real       0." in done.output
    assert "generated  0.9" in done.output or "generated  1.0" in done.output
    assert "fitted to drawn pictures" in done.output
    assert "proves nothing" in done.output
    rows = {row["path"]: row for row in json.loads(Path("report.json").read_text())}
    assert [rows[name]["label"] for name in ("a.png", "b.png")] == ["real", "generated"]
    assert rows["a.png"]["model_id"].startswith("frequency-")
    assert rows["a.png"]["threshold"] == [0.3, 0.7]
    assert (rows["a.png"]["width"], rows["a.png"]["format"]) == (48, "PNG")
    assert len(rows["a.png"]["explanation"]) == 3
    probability = 1 / (1 + np.exp(-rows["b.png"]["logit"]))
    assert rows["b.png"]["prob_fake"] == pytest.approx(probability, rel=1e-4)


def test_json_is_all_that_is_printed(kept):
    noise("a.png")
    Path("b.png").write_text("no picture")
    done = CliRunner().invoke(app, ["a.png", "b.png", "--json", "--detector", str(kept / "frequency")])
    assert done.exit_code == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert rows[1]["error"]


def test_a_second_run_goes_on_from_its_report(kept):
    noise("art/a.png")
    common = ("art", "--detector", str(kept / "frequency"), "--report", "report.json")
    assert run(*common).exit_code == 0
    noise("art/b.png", seed=1)
    again = run(*common)
    assert again.exit_code == 0
    assert "1 done, 1 skipped, 0 failed" in again.output
    rows = {row["path"]: row for row in json.loads(Path("report.json").read_text())}
    assert rows["art/a.png"]["label"] == rows["art/b.png"]["label"] == "real"
    explained = run(*common, "--explain")
    assert "2 done, 0 skipped" in explained.output
    other = run("art", "--detector", str(kept / "reconstruction"), "--report", "report.json")
    assert "2 done, 0 skipped" in other.output, "another detector answers anew"


def test_another_file_is_replaced_by_a_report_only_when_asked(kept):
    noise("a.png")
    Path("report.json").write_text("{}")
    common = ("a.png", "--detector", str(kept / "frequency"), "--report", "report.json")
    assert run(*common).exit_code == 2
    assert Path("report.json").read_text() == "{}"
    assert "1 done, 0 skipped" in run(*common, "--overwrite").output
    assert "0 done, 1 skipped" in run(*common).output
    assert "1 done, 0 skipped" in run(*common, "--overwrite").output, "and answers anew"


def test_an_interrupted_run_keeps_what_the_report_said_of_the_rest(kept, monkeypatch):
    from detect import batch

    for name in ("a.png", "b.png", "c.png"):
        noise(f"art/{name}")
    Path("art/d.png").write_text("no picture")
    common = ("art", "--detector", str(kept / "frequency"), "--report", "report.json")
    assert run(*common).exit_code == 1
    before = json.loads(Path("report.json").read_text())
    noise("art/a.png", seed=9)
    original = batch._known

    def interrupted(job, *arguments):
        if job.input.name == "b.png":
            raise KeyboardInterrupt
        return original(job, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(batch, "_known", interrupted)
        stopped = run(*common)
    assert stopped.exit_code == 130
    assert "interrupted with 1 of 4 done; the same command goes on from here" in stopped.output
    rows = json.loads(Path("report.json").read_text())
    assert [row["path"] for row in rows] == [f"art/{letter}.png" for letter in "abcd"]
    assert rows[0]["sha256"] != before[0]["sha256"]
    assert rows[1:] == before[1:]
    assert "0 done, 3 skipped, 1 failed" in run(*common).output
    for name in ("c.png", "d.png"):
        Path("art", name).unlink()
    assert run(*common).exit_code == 0
    assert len(json.loads(Path("report.json").read_text())) == 2, "a run that ends says what is there"


def test_a_heatmap_is_drawn_where_the_detector_looks_at_places(kept):
    noise("a.png", side=56)
    done = run("a.png", "--detector", str(kept / "reconstruction"), "--heatmap", "maps", "--json")
    assert done.exit_code == 0, done.output
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert row["heatmap_path"] == "maps/a.png.heatmap.png"
    with Image.open("maps/a.png.heatmap.png") as drawn:
        assert drawn.size == (56, 56)
    refused = run("a.png", "--detector", str(kept / "frequency"), "--heatmap", "maps")
    assert refused.exit_code == 2
    assert "does not look at places" in refused.output


def test_a_heatmap_replaces_no_input_and_no_other_heatmap(kept):
    def refused(*arguments):
        before = {path: path.read_bytes() for path in Path().rglob("*.png")}
        done = run(*arguments, "--detector", str(kept / "reconstruction"))
        assert done.exit_code == 2, done.output
        assert done.output.count("\n") == 1
        assert {path: path.read_bytes() for path in Path().rglob("*.png")} == before
        return done.output

    for number, name in enumerate(("a.png", "a.png.heatmap.png", "one/b.png", "two/b.png")):
        noise(name, seed=number, side=56)
    said = "the result a.png.heatmap.png would replace the input a.png.heatmap.png; choose another --heatmap"
    assert said in refused("a.png", "a.png.heatmap.png", "--heatmap", ".")
    said = "one/b.png and two/b.png would both be written to maps/b.png.heatmap.png; take them one after the"
    assert said in refused("one", "two", "--heatmap", "maps")
    done = run("one", "two", "a.png", "a.png.heatmap.png", "--detector", str(kept / "reconstruction"))
    assert done.exit_code == 0, "without heatmaps nothing is in the way"


def test_a_file_that_is_not_the_heatmap_of_this_picture_is_replaced_only_when_asked(kept):
    noise("a.png", side=56)
    noise("maps/a.png.heatmap.png", seed=1)
    common = ("a.png", "--detector", str(kept / "reconstruction"), "--heatmap", "maps")
    heatmap = Path("maps/a.png.heatmap.png")
    before = heatmap.read_bytes()
    done = run(*common)
    assert done.exit_code == 1
    made = "exists and was not made from this input with these settings; --overwrite replaces it"
    assert f"failed     a.png: {heatmap} {made}" in done.output
    assert heatmap.read_bytes() == before
    assert run(*common, "--overwrite").exit_code == 0
    drawn = heatmap.read_bytes()
    assert drawn != before
    assert run(*common).exit_code == 0, "its own heatmap is in nobody's way"
    assert heatmap.read_bytes() == drawn
    noise("a.png", seed=2, side=56)
    assert made in run(*common).output
    assert heatmap.read_bytes() == drawn


def test_every_picture_of_a_folder_is_answered_once_whatever_its_name(kept):
    for name in ("art/a.png", "art/a.jpg", "art/.hidden.png", "art/below/c.webp", "art/a.png.heatmap.png"):
        noise(name)
    Path("art/notes.txt").write_text("no picture")

    def answered(*arguments):
        done = run(*arguments, "--json", "--detector", str(kept / "frequency"))
        return [json.loads(line)["path"] for line in done.stdout.splitlines()]

    assert answered("art", "art/a.png") == ["art/a.jpg", "art/a.png"]
    assert answered("art", "--recursive") == ["art/a.jpg", "art/a.png", "art/below/c.webp"]
    assert answered("art/*.png", "art/**/*.webp") == ["art/a.png", "art/below/c.webp"]
    assert answered("art/a.png.heatmap.png") == ["art/a.png.heatmap.png"]
    plan = pictures_of(["art", "absent", "art/*.gif", "", "art/below"], heatmaps="maps")
    reasons = ["does not exist", "matches no pictures", "is an empty name"]
    assert [each.reason for each in plan.problems] == reasons
    assert [str(each.output) for each in plan.jobs] == [
        "maps/a.jpg.heatmap.png",
        "maps/a.png.heatmap.png",
        "maps/c.webp.heatmap.png",
    ]


def test_what_the_detector_was_not_fitted_to_is_unsure(kept):
    noise("large.png", side=100)
    done = run("large.png", "--detector", str(kept / "frequency"), "--json")
    row = json.loads(done.stdout)
    assert row["label"] == "unsure"
    assert "fitted to 48 to 64 px" in row["warnings"][-1]


def test_the_detector_that_ships_says_what_it_was_fitted_to_and_is_unsure_of_other_sizes():
    noise("small.png", side=32)
    noise("large.png", side=48)
    done = run("small.png", "large.png")
    assert done.exit_code == 0, done.output
    assert "fitted to" in done.output
    assert "CIFAKE" in done.output
    assert "unsure" in next(line for line in done.output.splitlines() if "large.png" in line)
    assert "fitted to 32 px" in done.output


def test_two_hundred_mixed_files_are_all_answered_or_named(kept):
    generator = np.random.default_rng(0)
    Path("mixed").mkdir()
    for number in range(200):
        pixels = generator.integers(0, 256, (48, 48 + number % 9, 3), dtype=np.uint8)
        image, kind = Image.fromarray(pixels), number % 10
        path = Path(f"mixed/{number:03d}")
        if kind == 0:
            image.save(path.with_suffix(".jpg"), quality=60)
        elif kind == 1:
            image.convert("L").save(path.with_suffix(".png"))
        elif kind == 2:
            image.putalpha(100)
            image.save(path.with_suffix(".webp"))
        elif kind == 3:
            image.convert("P").save(path.with_suffix(".gif"))
        elif kind == 4:
            more = [Image.fromarray(255 - pixels)]
            image.save(path.with_suffix(".png"), save_all=True, append_images=more, duration=100)
        elif kind == 5:
            image.resize((20, 20)).save(path.with_suffix(".png"))
        elif kind == 6:
            image.convert("CMYK").save(path.with_suffix(".jpg"))
        elif kind == 7:
            image.save(path.with_suffix(".png"))
            data = path.with_suffix(".png").read_bytes()
            path.with_suffix(".png").write_bytes(data[: len(data) // 2])
        elif kind == 8:
            path.with_suffix(".png").write_bytes(b"")
        else:
            image.save(path.with_suffix(".bmp"))
    done = run("mixed", "absent.png", "--detector", str(kept / "frequency"), "--json")
    assert done.exit_code == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 201
    failures = [row for row in rows if row["status"] == "failed"]
    reasons = ("too small", "CMYK without a colour profile", "damaged", "empty")
    assert [sum(reason in row["error"] for row in failures) for reason in reasons] == [20] * 4
    assert len(failures) == 81, "and the one that does not exist"
    assert all(row["error"] and "\n" not in row["error"] for row in failures)
    assert not any("unexpected" in row["error"] for row in failures)
    warned = {warning for row in rows for warning in row["warnings"]}
    assert {"only the first of its 2 frames was looked at", "transparent parts were laid on white"} <= warned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no INPUT given"),
        (["a.png", "--detector", "absent"], "'absent' holds no detector"),
        (["a.png", "--detector", "UNCALIBRATED"], "is not calibrated"),
        (["a.png", "--detector", "FREQUENCY", "--report", "a.png"], "would replace an input"),
        (["a.png", "--detector", "FREQUENCY", "--report", "other.json"], "is not of an earlier run"),
        (["a.png", "--detector", "FREQUENCY", "--report", "like.json"], "is no report of detect"),
        (["a.png", "--detector", "FREQUENCY", "--device", "abacus"], "cannot be used"),
    ],
)
def test_mistakes_take_one_line(kept, arguments, message):
    noise("a.png")
    Path("other.json").write_text("{}")
    Path("like.json").write_text('[{"path": "a.png", "status": "done"}]')
    places = {"UNCALIBRATED": str(kept / "uncalibrated"), "FREQUENCY": str(kept / "frequency")}
    done = run(*[places.get(each, each) for each in arguments])
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.count("\n") == 1


def test_colours_of_a_heatmap_run_from_blue_to_red():
    heat = torch.linspace(0, 1, 40 * 40).view(1, 40, 40)
    drawn = overlay(torch.full((1, 3, 40, 40), 0.5), heat)
    assert drawn[0, 2, 0, 0] > drawn[0, 0, 0, 0] + 0.3
    assert drawn[0, 0, -1, -1] > drawn[0, 2, -1, -1] + 0.3
    torch.testing.assert_close(overlay(torch.full((1, 3, 40, 40), 0.5), 7 * heat - 3), drawn)
