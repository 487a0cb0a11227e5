"""The command line as people meet it: options, exit codes, one line per mistake, reports and sheets."""

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from imaging.batch import terminal as terminals
from imaging.batch.discover import Job
from imaging.io import Picture, read, write
from protect.cli import STRENGTHS, app
from protect.methods import METHODS

FLAGS = """
    --method --out --eps --strength --steps --model --mask --seed --device --recursive --overwrite --report
    --sheet --offline --quiet
"""
REPORTED = """
    input output status error method model eps linf psnr ssim steps seed seconds peak_memory_mb survival
"""

Protect = Callable[..., "Result"]


class Result:
    """Exit code and streams of one command."""

    def __init__(self, arguments: list[str]) -> None:
        result = CliRunner().invoke(app, arguments)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        assert "Traceback" not in self.out
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception


@pytest.fixture
def protect(tiny_autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Protect:
    """Run the command in an empty folder, by default quickly and with a tiny model."""
    monkeypatch.chdir(tmp_path)

    quick = ["--method", "mist-textural", "--model", str(tiny_autoencoder), "--steps", "1"]
    quick += ["--device", "cpu", "--precision", "float32"]
    # A later option wins over an earlier one of the same name.
    return lambda *arguments: Result([*quick, *arguments])


def test_help_names_every_option() -> None:
    result = Result(["--help"])
    assert result.code == 0
    assert [flag for flag in FLAGS.split() if flag not in result.out] == []


def test_the_version_is_said_before_anything_is_done() -> None:
    result = Result(["--version", "missing.png"])
    assert (result.code, result.out) == (0, f"vernis {version('vernis')}\n")


def test_a_picture_is_protected_beside_itself_and_the_terminal_says_what_that_is_worth(
    protect: Protect, draw, tiny_autoencoder: Path
) -> None:
    draw("a.png")
    result = protect("a.png")
    assert result.code == 0, result.err
    assert result.err == ""
    assert read("a.protected.png").width == 48
    assert "a.png -> a.protected.png: change " in result.out
    assert "1 done, 0 skipped, 0 failed" in result.out
    assert f"model: {tiny_autoencoder.name}. Against editing" in result.out
    assert "Not: carry-over to models with another autoencoder is not shown" in result.out
    assert "raises the cost of misuse; does not guarantee" in result.out


MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "no INPUT given"),
    "method": (["a.png", "--method", "mits"], "unknown method 'mits'; did you mean 'mist'?"),
    "option": (
        ["a.png", "--semantic-wieght", "2"],
        "no such option: --semantic-wieght; did you mean --semantic-weight?",
    ),
    "flag": (["a.png", "--overwite"], "no such option: --overwite; did you mean --overwrite?"),
    "value": (["a.png", "--textural-weight", "much"], "--textural-weight expects a number; got 'much'"),
    "number": (["a.png", "--eps", "eight"], "--eps"),
    "eps zero": (["a.png", "--eps", "0"], "--eps is a number of levels from 1 to 64 (of 255); got 0"),
    "eps negative": (["a.png", "--eps", "-8"], "got -8"),
    "eps large": (["a.png", "--eps", "65"], "got 65"),
    "eps nan": (["a.png", "--eps", "nan"], "got nan"),
    "eps twice": (["a.png", "--eps", "8", "--strength", "max"], "--eps and --strength say the same thing"),
    "strength": (["a.png", "--strength", "huge"], "--strength"),
    "steps": (["a.png", "--steps", "0"], "steps must be at least 1; got 0"),
    "weights": (
        ["a.png", "--semantic-weight", "0", "--textural-weight", "0"],
        "weights must not be negative",
    ),
    "seed": (["a.png", "--seed", "-1"], "--seed"),
    "device": (["a.png", "--device", "gpu"], "device 'gpu' cannot be used"),
    "precision": (["a.png", "--precision", "half"], "--precision"),
    "model": (["a.png", "--model", "sd51"], "unknown model 'sd51'; did you mean 'sd"),
    "model folder": (["a.png", "--model", "empty"], "expected a model in diffusers' layout"),
    "no weights": (["a.png", "--model", "weightless"], "weightless"),
    "autoencoder": (["a.png", "--method", "advdm"], "is an autoencoder alone and AdvDM needs a denoiser"),
    "mask": (["a.png", "--mask", "gone.png"], "--mask: 'gone.png' does not exist"),
    "black mask": (["a.png", "--mask", "black.png"], "the mask is black everywhere"),
    "out of several": (["a.png", "b.png", "--out", "c.png"], "names one file for several inputs"),
    "out is input": (["a.png", "--out", "a.png"], "would replace the input a.png"),
    "out is linked input": (["a.png", "--out", "link.png"], "would replace the input a.png"),
    "out suffix": (["a.png", "--out", "a.xyz"], "no picture format"),
    "report is input": (["a.png", "--report", "a.png"], "--report a.png would replace an input"),
    "report is result": (["a.png", "--report", "a.protected.png"], "would replace an input or a result"),
    "report nowhere": (["a.png", "--report", "/proc/r.json"], "cannot write into /proc"),
    "report is mask": (
        ["a.png", "--mask", "black.png", "--report", "black.png"],
        "--report black.png would replace an input or a result",
    ),
    "report is mask all the same": (
        ["a.png", "--mask", "black.png", "--report", "black.png", "--overwrite"],
        "--report black.png would replace an input or a result",
    ),
    "report is a picture": (["a.png", "--report", "b.png"], "--report b.png exists and is not of an earlier"),
    "report is other JSON": (
        ["a.png", "--report", "notes.json"],
        "name another file, or --overwrite replaces",
    ),
    "report is a link": (["a.png", "--report", "nowhere.json"], "--report nowhere.json exists and is not of"),
    "sheet is a picture": (
        ["a.png", "--sheet", "b.png"],
        "--sheet b.png exists and is not of an earlier run",
    ),
    "sheet suffix": (["a.png", "--sheet", "s.txt"], "no picture format"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_started(
    protect: Protect, draw, tiny_autoencoder, mistake: str
) -> None:
    for name in ("a.png", "b.png"):
        draw(name)
    write(Picture(torch.zeros(1, 3, 40, 48, dtype=torch.uint8)), "black.png")
    os.symlink("a.png", "link.png")
    os.symlink("gone.json", "nowhere.json")
    Path("notes.json").write_text('[{"input": "a.png", "output": "b.png"}]')
    Path("empty").mkdir()
    Path("weightless").mkdir()
    Path("weightless/config.json").write_bytes((tiny_autoencoder / "config.json").read_bytes())
    before = {path.name: path.read_bytes() for path in Path.cwd().iterdir() if path.is_file()}
    arguments, message = MISTAKES[mistake]
    result = protect(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("protect: ")
    assert result.err.count("\n") == 1
    assert result.out == ""
    assert {path.name: path.read_bytes() for path in Path.cwd().iterdir() if path.is_file()} == before


def test_each_failure_is_named_the_rest_is_done_and_the_report_has_them_all(protect: Protect, draw) -> None:
    draw("a.png")
    Path("text.png").write_text("not a picture at all, but long enough to look at " * 3)
    Path("bare").mkdir()
    result = protect("a.png", "text.png", "gone.png", "bare", "--report", "r.json")
    assert result.code == 1
    assert [line.partition(":")[0] for line in result.err.splitlines()] == [
        "failed   gone.png",
        "failed   bare",
        "failed   text.png",
    ]
    records = {record["input"]: record for record in json.loads(Path("r.json").read_text())}
    assert {name: record["status"] for name, record in records.items()} == {
        "a.png": "done",
        "text.png": "failed",
        "gone.png": "failed",
        "bare": "failed",
    }
    for record in records.values():
        assert [name for name in REPORTED.split() if name not in record] == []
        assert (record["error"] is None) == (record["status"] == "done")
    done = records["a.png"]
    assert done["linf"] <= done["eps"] == 8
    assert set(done["survival"]) == {"file", "jpeg75", "half_size", "blur"}
    assert done["against"]
    assert done["not_against"]


def test_a_second_run_skips_and_other_settings_need_overwrite(protect: Protect, draw) -> None:
    draw("a.png")
    assert protect("a.png").code == 0
    again = protect("a.png")
    assert (again.code, "0 done, 1 skipped, 0 failed" in again.out) == (0, True)
    other = protect("a.png", "--textural-weight", "2")
    assert other.code == 1
    assert "--overwrite replaces it" in other.err
    assert protect("a.png", "--textural-weight", "2", "--overwrite").code == 0


def test_a_folder_goes_to_another_folder_as_a_tree_and_a_repetition_has_nothing_to_do(
    protect: Protect, draw
) -> None:
    draw("art/a.png")
    draw("art/deep/b.webp")
    assert protect("art", "--recursive", "--out", "safe").code == 0
    assert read("safe/deep/b.protected.png").frames == 1
    assert protect("art", "--recursive").code == 0
    result = protect("art", "--recursive")
    assert "left out 2 results of earlier runs" in result.out
    assert "0 done, 2 skipped, 0 failed" in result.out


@pytest.mark.parametrize(("word", "levels"), STRENGTHS.items())
def test_strength_is_a_word_for_eps(protect: Protect, draw, word: str, levels: int) -> None:
    draw("a.png")
    options = ("--strength", word, "--step-size", "64", "--no-random-start", "--report", "r.json")
    assert protect("a.png", *options).code == 0
    (record,) = json.loads(Path("r.json").read_text())
    assert (record["eps"], record["linf"]) == (levels, levels)


def test_a_methods_own_fields_are_options_in_levels_of_the_file(protect: Protect, draw) -> None:
    draw("a.png")
    assert protect("a.png", "--step-size=3", "--no-random-start", "--report", "r.json").code == 0
    assert json.loads(Path("r.json").read_text())[0]["linf"] == 3


def test_quiet_prints_errors_only(protect: Protect, draw) -> None:
    draw("a.png")
    result = protect("a.png", "gone.png", "--quiet")
    assert (result.code, result.out) == (1, "")
    assert result.err == "failed   gone.png: does not exist\n"


def test_a_mask_protects_its_white_part_and_one_of_another_size_names_both(protect: Protect, draw) -> None:
    draw("a.png", 40, 48)
    draw("b.png", 48, 48)
    white = torch.zeros(1, 3, 40, 48, dtype=torch.uint8)
    white[..., 24:] = 255
    write(Picture(white), "mask.png")
    result = protect("a.png", "b.png", "--mask", "mask.png")
    assert result.code == 1
    assert "the mask is 48 x 40 px and the picture 48 x 48 px" in result.err
    change = read("a.protected.png").integers.int() - read("a.png").integers.int()
    assert change[..., :24].abs().max() == 0
    assert change[..., 24:].abs().max() > 0


def test_the_sheet_shows_originals_changes_and_edits(protect: Protect, draw, tiny_diffusion: Path) -> None:
    draw("a.png", 64, 64)
    draw("b.png", 100, 120)
    assert protect("a.png", "b.png", "--sheet", "sheets/s.png", "--model", str(tiny_diffusion)).code == 0
    sheet = read("sheets/s.png")
    assert sheet.width > 5 * 128
    assert sheet.height > 2 * 128
    assert protect("a.png", "--sheet", "sheets/s.png", "--model", str(tiny_diffusion)).code == 0, (
        "a skipped picture is shown"
    )
    assert read("sheets/s.png").height < sheet.height


@pytest.mark.parametrize("sheet", ["s.png", "s.jpg", "s.webp"])
def test_a_run_replaces_its_own_report_and_sheet_and_other_files_only_when_asked(
    protect: Protect, draw, tiny_diffusion: Path, sheet: str
) -> None:
    draw("a.png", 64, 64)
    Path("r.json").write_text("{}")
    draw(sheet)
    common = ("a.png", "--model", str(tiny_diffusion), "--report", "r.json", "--sheet", sheet)
    assert protect(*common).code == 2
    assert protect(*common, "--overwrite").code == 0
    assert read(sheet).width > 5 * 128
    result = protect(*common)
    assert (result.code, result.err) == (0, "")
    assert "0 done, 1 skipped" in result.out
    assert [record["status"] for record in json.loads(Path("r.json").read_text())] == ["skipped"]


def test_offline_is_said_to_the_hub_before_anything_is_loaded(protect: Protect, draw, monkeypatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    draw("a.png")
    result = protect("a.png", "--offline", "--model", "sd-vae")
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert result.code == 2
    assert "run: hf download stabilityai/sd-vae-ft-mse" in result.err


def test_an_unexpected_error_shows_its_place_only_when_asked(protect: Protect, draw, monkeypatch) -> None:
    draw("a.png")

    def broken(*arguments, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("protect.command.batch.protect_image", broken)
    result = protect("a.png")
    assert result.code == 1
    assert result.err == (
        "failed   a.png: RuntimeError: shapes do not match (unexpected; --traceback shows where)\n"
    )
    assert "in broken" in protect("a.png", "--traceback").err


def test_a_report_that_cannot_be_written_is_said_and_counts(protect: Protect, draw, monkeypatch) -> None:
    draw("a.png")

    def full(records, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("imaging.batch.session.write_report", full)
    result = protect("a.png", "--report", "r.json")
    assert result.code == 1
    assert "the report was not written: r.json: No space left on device" in result.err
    assert Path("a.protected.png").exists()


def test_an_interruption_keeps_what_is_done_and_says_so(protect: Protect, draw, monkeypatch) -> None:
    from protect.command import batch

    for name in ("a.png", "b.png"):
        draw(name)
    original = batch.protect_image

    def interrupted(picture, *arguments, **options):
        if Path("a.protected.png").exists():
            raise KeyboardInterrupt
        return original(picture, *arguments, **options)

    monkeypatch.setattr(batch, "protect_image", interrupted)
    result = protect("a.png", "b.png", "--report", "r.json")
    assert result.code == 130
    assert result.err == "interrupted with 1 of 2 done; the same command goes on from here\n"
    assert [record["status"] for record in json.loads(Path("r.json").read_text())] == ["done"]


def test_a_name_that_is_no_text_can_be_protected_and_printed(protect: Protect, draw) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Path(name).write_bytes(draw("a.png").read_bytes())
    result = protect(name, "--report", "r.json")
    assert result.code == 0, result.err
    assert "caf\\udce9.png" in result.out
    assert len(json.loads(Path("r.json").read_text())) == 1


def test_methods_are_listed_with_what_they_guard_against() -> None:
    result = Result(["--list"])
    assert result.code == 0
    for name, entry in METHODS.items():
        assert name in result.out
        assert f"against {entry.guards}" in result.out


def test_a_methods_options_are_listed_with_words_and_defaults() -> None:
    result = Result(["--method", "mist", "--options"])
    assert result.code == 0
    assert "--step-size  a number; default 1 of 255" in result.out
    assert "Push up the denoising loss" in result.out
    assert Result(["--method", "mits", "--options"]).code == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_the_time_left(capsys, monkeypatch, terminal: bool) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(terminals, "_SECONDS_BETWEEN_LINES", -1.0)
    with terminals.Terminal(2, quiet=False) as screen:
        screen.update(Job(Path("a.png"), Path("b.png")), 0.5)
        screen.finish()
        screen.say("done")
    out = capsys.readouterr().out
    assert "done" in out
    assert terminal or "a.png: 50%, about 0 s left\n         1 of 2, about 0 s left" in out
