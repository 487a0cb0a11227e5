"""The command `purify`: files in, files out, one line for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from diffusion.pixel import PixelDiffusion
from imaging.io import Picture, read, write
from purify.cli import app
from purify.methods import METHODS, create, options
from purify.picture import purify_image


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(name: str, height: int = 40, width: int = 52, seed: int = 0, **facts) -> Picture:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (1, 3, height, width), generator=generator).to(torch.uint8)
    picture = Picture(pixels, **facts)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    write(picture, name)
    return picture


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_needs_nothing_heavy():
    code = "import sys; from purify.cli import app; app(['--help'], standalone_mode=False);"
    code += "assert not {'torch', 'PIL', 'diffusers'} & set(sys.modules)"
    root = Path(__file__).parents[2]
    finished = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "--method" in finished.stdout


def test_a_picture_is_purified_beside_itself_and_reported():
    before = draw("cat.png", alpha=torch.full((1, 1, 40, 52), 255, dtype=torch.uint8), dpi=(300.0, 300.0))
    done = run("cat.png", "--method", "blur", "--set", "sigma=1.5", "--report", "report.json")
    assert done.exit_code == 0, done.output
    after = read("cat.purified.png")
    assert after.integers.shape == before.integers.shape
    assert torch.equal(after.alpha, before.alpha)
    assert after.dpi == pytest.approx((300, 300), abs=0.1)
    (row,) = json.loads(Path("report.json").read_text())
    assert (row["status"], row["method"], row["settings"], row["error"]) == (
        "done",
        "blur",
        {"sigma": 1.5},
        None,
    )
    change = (after.integers.int() - before.integers.int()).abs().amax()
    assert row["linf"] == pytest.approx(float(change), abs=0.01)
    assert 0 < row["ssim"] < 1
    assert "1 done, 0 skipped, 0 failed" in done.output
    assert "Purifying weakens" in done.output


def test_a_second_run_skips_and_other_settings_are_refused():
    draw("a.png")
    assert run("a.png", "--method", "quantize").exit_code == 0
    stamp = Path("a.purified.png").stat().st_mtime_ns
    again = run("a.png", "--method", "quantize")
    assert again.exit_code == 0
    assert "skipped  a.png" in again.output
    other = run("a.png", "--method", "quantize", "--set", "bits=2")
    assert other.exit_code == 1
    assert "--overwrite replaces it" in other.output
    assert Path("a.purified.png").stat().st_mtime_ns == stamp
    assert run("a.png", "--method", "quantize", "--set", "bits=2", "--overwrite").exit_code == 0
    assert len(read("a.purified.png").integers.unique()) <= 4


def test_a_folder_with_a_broken_file_is_done_but_for_that():
    draw("art/a.png")
    draw("art/below/b.webp", 33, 70)
    Path("art/c.png").write_text("no picture")
    done = run("art", "--method", "jpeg", "--recursive", "--out", "clean")
    assert done.exit_code == 1
    assert "failed   art/c.png" in done.output
    assert sorted(path.as_posix() for path in Path("clean").rglob("*.*")) == [
        "clean/a.purified.png",
        "clean/below/b.purified.png",
    ]


def test_every_frame_of_an_animation_is_purified_and_transparent_pixels_stay():
    pixels = torch.randint(0, 256, (2, 3, 36, 36), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    alpha = torch.full((2, 1, 36, 36), 255, dtype=torch.uint8)
    alpha[:, :, :10] = 0
    picture = Picture(pixels, alpha=alpha, durations=(80, 120))
    after = purify_image(picture, "blur", sigma=1.0)
    assert torch.equal(after.integers[:, :, :10], pixels[:, :, :10])
    for frame in range(2):
        assert not torch.equal(after.integers[frame, :, 10:], pixels[frame, :, 10:])
    assert after.durations == (80, 120)


@pytest.fixture
def tiny(network) -> PixelDiffusion:
    return PixelDiffusion(network.unet.float(), network.schedule, name="tiny")


@pytest.mark.parametrize("size", [(32, 40), (9, 31), (12, 12), (50, 13)])
def test_a_prior_of_twelve_pixels_purifies_any_size_by_tiles(tiny, size):
    picture = Picture(torch.randint(0, 256, (1, 3, *size)).to(torch.uint8))
    try:
        one = purify_image(picture, "diffpure", tiny, t=20, steps=1)
        assert one.integers.shape == picture.integers.shape
        assert torch.equal(one.integers, purify_image(picture, "diffpure", tiny, t=20, steps=1).integers)
        other = purify_image(picture, "diffpure", tiny, t=20, steps=1, seed=5)
        assert not torch.equal(one.integers, other.integers)
    finally:
        tiny.unet.double()


def test_a_latent_prior_purifies_from_the_command_line():
    draw("a.png", 50, 70)
    done = run("a.png", "--model", "builtin", "--t", "40", "--steps", "2", "--precision", "float32")
    assert done.exit_code == 0, done.output
    assert "prior: builtin" in done.output
    assert read("a.purified.png").integers.shape == (1, 3, 50, 70)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_is_made_by_name(network, name):
    assert create(name, network) is not None
    assert all(value is None or isinstance(value, int | float | str) for value in options(name).values())


def test_settings_are_listed():
    listed = run("--method", "mani-pure", "--options")
    assert "--set gamma=1.8" in listed.output
    assert "--set mode=spatial" in listed.output
    assert all(name in run("--list").output for name in METHODS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no INPUT given"),
        (["absent.png", "--method", "blur"], 1, "absent.png: does not exist"),
        (["a.png", "--method", "difpure"], 2, "did you mean 'diffpure'"),
        (["a.png", "--model", "builtn"], 2, "did you mean 'builtin'"),
        (["a.png", "--method", "blur", "--t", "100"], 2, "blur has no setting 't'; available: sigma"),
        (["a.png", "--method", "blur", "--set", "sigma"], 2, "--set takes NAME=VALUE"),
        (["a.png", "--method", "blur", "--set", "sigma=-1"], 1, "sigma must be positive"),
        (["a.png", "--method", "blur", "--set", "sigma=abc"], 2, "sigma is a number; got 'abc'"),
        (["a.png", "--method", "blur", "--set", "sigma=nan"], 2, "sigma is a number; got nan"),
        (["a.png", "--method", "blur", "--set", "sigma=1000"], 1, "a blur that reaches 3000 px is too wide"),
        (["a.png", "--method", "jpeg", "--set", "quality=7.5"], 2, "quality is a whole number; got 7.5"),
        (["a.png", "--method", "quantize", "--set", "bits=99"], 1, "one to sixteen bits"),
        (["a.png", "--t", "2000", "--model", "builtin"], 2, "from 1 to 1000; got 2000"),
        (["a.png", "--t", "5", "--steps", "9", "--model", "builtin"], 2, "takes 1 to 5 steps; got 9"),
        (["a.png", "--method", "freqpure", "--model", "builtin"], 2, "FreqPure works on pixels"),
        (["a.png", "--method", "blur", "--report", "a.png"], 2, "would replace an input"),
        (["a.png", "--method", "blur", "--report", "notes.json"], 2, "exists and is not of an earlier run"),
        (["a.png", "--method", "blur", "--out", "a.png"], 2, "would replace the input"),
        (["a.png", "--bogus"], 2, "--bogus"),
    ],
)
def test_mistakes_take_one_line_and_lose_nothing(arguments, code, message):
    draw("a.png")
    Path("notes.json").write_text("[1]")
    before = Path("a.png").read_bytes()
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert message in done.output
    assert Path("notes.json").read_text() == "[1]"
    assert "Traceback" not in done.output
    assert Path("a.png").read_bytes() == before
    assert not Path("a.purified.png").exists()


def test_a_report_that_cannot_be_written_is_said_and_counts(monkeypatch):
    draw("a.png")

    def full(records, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("imaging.batch.session.write_report", full)
    done = run("a.png", "--method", "blur", "--report", "r.json")
    assert done.exit_code == 1
    assert "the report was not written: r.json: No space left on device" in done.output
    assert Path("a.purified.png").exists()


def test_an_interruption_keeps_what_is_done_and_says_so(monkeypatch):
    from purify import batch

    for name in ("a.png", "b.png"):
        draw(name)
    original = batch.purify_image

    def interrupted(picture, *arguments, **options):
        if Path("a.purified.png").exists():
            raise KeyboardInterrupt
        return original(picture, *arguments, **options)

    monkeypatch.setattr(batch, "purify_image", interrupted)
    done = run("a.png", "b.png", "--method", "blur", "--report", "r.json")
    assert done.exit_code == 130
    assert "interrupted with 1 of 2 done; the same command goes on from here" in done.output
    assert [row["status"] for row in json.loads(Path("r.json").read_text())] == ["done"]
