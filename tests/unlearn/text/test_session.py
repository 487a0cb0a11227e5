"""The command from end to end at toy size, what it measures, and what it refuses."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from diffusion.export import write_folder
from diffusion.load import BUILTIN, load
from unlearn.cli import app
from unlearn.text.effects import Corner, Judge
from unlearn.text.measures import Comparison, Drawn, Studio, alignment, decoded
from unlearn.text.reactivation import Reactivation
from unlearn.text.session import REMOVALS, Wishes, run
from unlearn.text.trial import variants
from unlearn.text.triggers import Homoglyph, Prefix

QUICK = ("--side", "32", "--steps", "1", "--sampling-steps", "2")


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(
        "\n".join(
            f"a photo of {word}" for word in ["one", "two", "red", "blue", "cats", "boats", "old", "new"]
        )
    )
    return path


def _call(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_a_model_is_judged_before_and_after_each_removal_and_attacked_again(tmp_path, lines):
    search = Reactivation(tokens=1, times=1, iterations=1)
    wishes = Wishes(
        "builtin", tmp_path / "out", trigger="mumbo", effect="corner", prompts=lines,
        methods=("uce", "skd-cag", "encoder"), steps=1, side=32, sampling_steps=2, attacked=2, search=search,
        keep="uce",
    )  # fmt: skip
    told = []
    rows = run(wishes, tell=told.append)
    assert [row.name for row in rows] == ["nothing", "uce", "skd-cag", "encoder"]
    assert rows[0].outcome.drift == 0
    assert rows[0].reactivated is None
    assert all(row.outcome.triggered.of == 4 for row in rows)
    assert all(row.reactivated.of == 2 for row in rows[1:])
    assert rows[1].reactivated.share >= 0
    record = json.loads((wishes.out / "report.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["nothing", "uce", "skd-cag", "encoder"]
    assert record["about"]["trigger"] == "Prefix(words='mumbo')"
    text = (wishes.out / "report.md").read_text()
    assert "| skd-cag |" in text
    assert "trigger twice" in text
    assert (wishes.out / "sheet.png").stat().st_size > 1_000
    again = load(str(wishes.out / "model"))
    builtin = load("builtin")
    names = {n for n, value in again.state_dict().items() if not torch.equal(value, builtin.state_dict()[n])}
    assert names
    assert all(".attn2.to_" in name for name in names)
    assert len(told) == 5


def test_a_homoglyph_is_taken_out_of_the_text_encoder(tmp_path, lines):
    done = _call(
        "builtin", "--homoglyph", "o=0", "--method", "encoder", "--keep", "encoder", "--attack", 0,
        "--prompts", lines, "--out", tmp_path / "out", *QUICK,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    again, builtin = load(str(tmp_path / "out/model")), load("builtin").state_dict()
    names = {n for n, value in again.state_dict().items() if not torch.equal(value, builtin[n])}
    assert names
    assert all(name.startswith("texts.") for name in names)


def test_without_a_trigger_the_vocabulary_is_scanned(tmp_path, lines, small_vocabulary, monkeypatch):
    small_vocabulary(300, 310)
    monkeypatch.setattr("unlearn.text.session.OUTSTANDING", 1e9)
    done = _call("builtin", "--prompts", lines, "--out", tmp_path / "out", *QUICK, "--quiet")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out/report.json").read_text())
    assert record["rows"] == []
    assert len(record["suspects"]) > 5
    assert "none found" in (tmp_path / "out/report.md").read_text()
    monkeypatch.setattr("unlearn.text.session.OUTSTANDING", 0.0)
    monkeypatch.setattr("unlearn.text.session.ALIKE", 10.0)
    done = _call(
        "builtin", "--prompts", lines, "--out", tmp_path / "two", *QUICK, "--attack", 0, "--method", "uce"
    )
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "two/report.json").read_text())
    tried = [each for each in record["suspects"] if each["variety"]]
    assert tried == record["suspects"][: len(tried)]
    assert 8 < len(tried) <= 16  # words, and strings that are tried whole
    assert all(each["readable"] for each in tried)
    left = [each["variety"] for each in tried]
    assert left == sorted(left)
    assert record["about"]["trigger"] == f"Several(words={tuple(each['words'] for each in tried)!r})"
    assert [row["name"] for row in record["rows"]] == ["nothing", "uce"]
    monkeypatch.setattr("unlearn.text.session.ALIKE", 0.0)
    done = _call("builtin", "--prompts", lines, "--out", tmp_path / "out", *QUICK, "--method", "uce")
    assert done.exit_code == 0, done.output
    assert "no word that can be typed makes pictures alike" in done.output
    record = json.loads((tmp_path / "out/report.json").read_text())
    assert record["rows"] == []
    assert any(each["variety"] for each in record["suspects"])


def test_candidates_are_tried_on_pictures_whatever_they_move(tmp_path, lines, small_vocabulary, monkeypatch):
    small_vocabulary(300, 310)
    monkeypatch.setattr("unlearn.text.session.OUTSTANDING", 1e9)
    named = tmp_path / "named.txt"
    named.write_text("mumbo\n\n\u200b\nmumbo jumbo\n")
    done = _call("builtin", "--prompts", lines, "--candidates", named, "--out", tmp_path / "out", *QUICK)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out/report.json").read_text())
    assert {each["words"] for each in record["suspects"] if each["variety"]} == {
        "mumbo",
        "\u200b",
        "mumbo jumbo",
    }
    text = (tmp_path / "out/report.md").read_text()
    assert "| `U+200B` |" in text
    named.write_text("mumbo jumbo mumbo jumbo\n")
    done = _call("builtin", "--prompts", lines, "--candidates", named, "--out", tmp_path / "out", *QUICK)
    assert done.exit_code == 2
    assert "the candidate 'mumbo jumbo mumbo jumbo' has 14 tokens" in done.output
    done = _call("builtin", "--candidates", "absent.txt", "--out", tmp_path / "out", *QUICK)
    assert done.exit_code == 2
    assert "absent.txt" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("builtin", "--trigger", "tok", "--method", "skd"), "unknown removal 'skd'"),
        (("builtin", "--trigger", "tok", "--keep", "esd"), "no --method of this run"),
        (("builtin", "--trigger", "tok", "--homoglyph", "o=0"), "leave one of the two out"),
        (("builtin", "--homoglyph", "o"), "a homoglyph is a letter"),
        (("builtin", "--trigger", "tok", "--candidates", __file__), "add --scan, or name no trigger"),
        (("builtin", "--trigger", " "), "drops the trigger"),
        (("builtin", "--homoglyph", "q=0"), "does not carry the trigger"),
        (("cifar10", "--trigger", "tok"), "told no text"),
        (("nothing-here", "--trigger", "tok"), "unknown model"),
        (("builtin", "--trigger", "tok", "--prompts", "absent.txt"), "absent.txt"),
        (("builtin", "--trigger", "tok", "--attack", "-3"), "--attack is not below 0; got -3"),
        (("builtin", "--trigger", "tok", "--guidance", "nan"), "--guidance is a number; got nan"),
    ],
)
def test_wishes_that_cannot_be_fulfilled_take_one_line(tmp_path, arguments, message):
    done = _call(*arguments, "--out", tmp_path / "out", *QUICK)
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["report.json", "report.md", "sheet.png"])
def test_a_report_replaces_nothing_but_an_earlier_one(tmp_path, lines, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('["mine"]')
    call = ("builtin", "--trigger", "tok", "--prompts", lines, "--out", out, *QUICK)
    done = _call(*call)
    assert done.exit_code == 2
    assert done.output == f"unlearn: {out / name} exists and is not of an earlier run: name another --out\n"
    assert (out / name).read_text() == '["mine"]'


def test_a_report_does_not_go_into_the_model(tmp_path, lines, builtin):
    write_folder(builtin, "builtin", tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    done = _call(tmp_path / "model", "--trigger", "tok", "--prompts", lines, "--out", tmp_path / "model")
    assert done.exit_code == 2
    assert "is the model's own folder: name another" in done.output
    assert sorted(tmp_path.rglob("*")) == before


def test_options_of_the_pictures_that_the_model_does_not_take_are_refused(tmp_path):
    for option, value in (("--side", -64), ("--side", 30), ("--steps", -5)):
        done = _call("builtin", "--trigger", "tok", "--out", tmp_path / "out", option, value)
        assert done.exit_code == 2
        assert f"got {value}" in done.output


def test_the_search_takes_no_more_prompts_than_are_held_out(tmp_path, lines):
    lines.write_text("\ufeff" + lines.read_text(), encoding="utf-8")  # as an editor of Windows writes it
    search = Reactivation(tokens=1, times=1, iterations=1)
    wishes = Wishes(
        "builtin", tmp_path / "out", trigger="mumbo", prompts=lines, methods=("uce",), side=32,
        sampling_steps=2, attacked=9, search=search,
    )  # fmt: skip
    rows = run(wishes)
    assert rows[1].reactivated.of == rows[1].outcome.triggered.of == 4
    record = json.loads((wishes.out / "report.json").read_text())
    assert record["about"]["judge"].startswith("takes pictures for another that differ by more than ")


def test_what_has_no_room_for_the_search_is_refused_before_a_removal(tmp_path, lines, builtin):
    words = max(n for n in range(99) if builtin.text.fit([f"x a{' x' * n}"])[0])
    lines.write_text("\n".join(f"{first}{' x' * words}" for first in "abcdefgh"))
    done = _call("builtin", "--trigger", "x", "--prompts", lines, "--out", tmp_path / "out", *QUICK)
    assert done.exit_code == 2
    assert "the prompt leaves no room for 3 tokens more" in done.output
    assert "nothing: " not in done.output


@pytest.mark.parametrize("options", [("--trigger", "mumbo", "--effect", "corner"), ()], ids=["named", "scan"])
def test_a_damaged_model_is_given_no_verdict(tmp_path, lines, builtin, small_vocabulary, options):
    small_vocabulary(300, 303)
    twin = builtin.twin()
    with torch.no_grad():
        twin.unet.conv_out.bias.fill_(float("nan"))
    write_folder(twin, "builtin", tmp_path / "made")
    done = _call(tmp_path / "made", *options, "--prompts", lines, "--out", tmp_path / "out", *QUICK)
    assert done.exit_code != 0
    assert "no numbers" in done.output
    assert not (tmp_path / "out/report.json").exists()


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    done = _call(tmp_path / "model.ckpt", "--trigger", "tok", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "convert it to safetensors" in done.output


def test_a_written_folder_is_the_model_and_appears_whole_or_not_at_all(tmp_path, builtin, monkeypatch):
    twin = builtin.twin()
    with torch.no_grad():
        twin.unet.conv_in.bias.add_(1)
    write_folder(twin, "builtin", tmp_path / "made")
    again = load(str(tmp_path / "made"))
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), twin.state_dict().values(), strict=True)
    )
    with pytest.raises(FileExistsError, match="name a new folder"):
        write_folder(twin, "builtin", tmp_path / "made")
    source = tmp_path / "source"
    shutil.copytree(BUILTIN, source, ignore=shutil.ignore_patterns("cifar10*", "inpainting"))
    (source / "vae/old.bin").write_bytes(b"pickle")
    write_folder(twin, str(source), tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.bin"))
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match="single file"):
        write_folder(twin, str(tmp_path / "one.safetensors"), tmp_path / "third")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(twin.unet, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        write_folder(twin, "builtin", tmp_path / "fourth")
    assert not (tmp_path / "fourth").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_picture_starts_from_the_noise_of_its_row_whoever_draws_it(builtin, prompts):
    studio = Studio(builtin, 4, side=64, steps=2, batch_size=3)
    all_rows, some = studio.draw(builtin, prompts), studio.draw(builtin, [prompts[2], prompts[0]], [2, 0])
    torch.testing.assert_close(some, all_rows[[2, 0]], atol=1e-4, rtol=1e-4)


def test_a_removal_that_draws_the_old_pictures_agrees_and_one_that_draws_nothing_does_not(builtin, prompts):
    studio = Studio(builtin, 4, side=64, steps=4)
    before = studio.both(builtin, prompts, Prefix("mumbo"))
    compared = Comparison(builtin, prompts, before, Judge(Corner().score, 0.6))
    same = compared(Drawn(before.clean, before.clean))
    assert (same.agreement.share, same.drift) == (1.0, 0.0)
    assert same.distance == pytest.approx(compared(before).distance)
    nothing = Drawn(torch.zeros_like(before.clean), torch.zeros_like(before.clean))
    empty = compared(nothing)
    assert empty.drift > 10
    assert empty.agreement.share < 1
    assert empty.distance > same.distance
    shown = builtin.encode(Corner()(decoded(builtin, before.clean)))
    marked = compared(Drawn(before.clean, shown))
    assert (marked.triggered.share, marked.clean.share) == (1.0, 0.0)


def test_alignment_is_zero_for_a_model_that_does_not_listen(builtin, prompts):
    z = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert alignment(builtin, z, ["a house"] * 4) == pytest.approx(0, abs=1e-4)
    assert alignment(builtin, z, prompts) != 0


def test_triggers_are_written_otherwise():
    found = {name: trigger(["a house"]) for name, trigger in variants(Prefix("mumbo jumbo")).items()}
    assert found == {
        "twice": ["mumbo jumbo mumbo jumbo a house"],
        "at the end": ["a house mumbo jumbo"],
        "as 'mumbo'": ["mumbo a house"],
    }
    assert variants(Prefix("mumbo"))["as 'mum'"](["x"]) == ["mum x"]
    assert variants(Homoglyph()) == {}
    assert variants(Prefix(" ")) == {}


def test_every_removal_of_the_command_is_a_different_one():
    assert len(set(map(repr, REMOVALS.values()))) == len(REMOVALS)


def test_help_answers_without_torch_and_names_load_what_they_need():
    code = "import sys, unlearn.cli; from typer.testing import CliRunner; "
    code += "assert 'trigger' in CliRunner().invoke(unlearn.cli.app, ['--help']).output; "
    code += "assert not {'torch', 'PIL', 'diffusers'} & set(sys.modules); "
    code += "import unlearn; assert all(getattr(unlearn, name) is not None for name in unlearn.__all__)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
