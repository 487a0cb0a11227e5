"""The command that repairs a classifier, from files to a table."""

import json

import numpy as np
import pytest
import torch

from distill.classifier import Classifier, load
from experiments.repair import main, trigger_of
from imaging.io import Picture, write
from unlearn.measures import measure
from unlearn.triggers import Additive, Blended, Patch, Sinusoid, Warp


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A classifier, and pictures that it does not know."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Classifier("resnet8", classes=3).save("backdoored.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez("toy.npz", images=images, labels=np.arange(60) % 3)
    return tmp_path


OPTIONS = ["--classifier", "backdoored.safetensors", "--data", "toy.npz", "--trigger", "patch:size=4"]
OPTIONS += ["--target", "1", "--clean", "20", "--methods", "clp", "fine-tuning"]


def test_the_table_has_a_row_for_each_repair_and_one_is_kept(files, capsys):
    assert main([*OPTIONS, "--out", "runs/out", "--keep", "clp"]) == 0
    report = json.loads((files / "runs/out/report.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["none", "clp", "fine-tuning"]
    assert capsys.readouterr().out.count("\n") == 5
    kept = load(files / "runs/out/repaired.safetensors")
    pixels = torch.from_numpy(np.load("toy.npz")["images"]).permute(0, 3, 1, 2) / 255
    judged = torch.randperm(60, generator=torch.Generator().manual_seed(0))[20:]
    found = measure(kept, pixels[judged], (torch.arange(60) % 3)[judged], Patch(size=4), target=1)
    row = report["rows"][1]
    assert (found.clean.share, found.clean.of) == (row["clean"]["share"], 40)
    assert found.attack.share == row["attack"]["share"]


def test_triggers_are_read_from_words(tmp_path):
    assert trigger_of("patch:size=4,margin=1") == Patch(4, 1)
    assert trigger_of("blended") == Blended()
    assert trigger_of("sinusoid:frequency=3") == Sinusoid(frequency=3)
    assert trigger_of("warp:cells=5") == Warp(cells=5)
    pattern = (torch.rand(1, 3, 32, 32) * 255).round() / 255
    write(Picture.from_pixels(pattern), tmp_path / "added.png")
    found = trigger_of(f"additive:{tmp_path / 'added.png'}")
    assert isinstance(found, Additive)
    torch.testing.assert_close(found.pattern, pattern[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--trigger", "curse"],
            "unknown trigger 'curse'; available: patch, blended, sinusoid, ",
        ),
        (["--trigger", "patch:depth=2"], "'patch:depth=2' is no trigger"),
        (["--trigger", "patch:size=99"], "a patch of 99 px does not fit"),
        (["--trigger", "patch:size=1.5"], "are whole pixels; got 1.5"),
        (["--target", "99"], "the target class 99 is none of the classifier's"),
        (["--device", "foo"], "device 'foo' cannot be used"),
        (["--images", "0"], "--images is 1 or more; got 0"),
        (["--classifier", __file__], "is no whole safetensors file; write pickled weights anew"),
        (["--clean", "60"], "there are 60 test pictures; --clean asks for 60"),
        (["--classifier", "absent"], "there are no weights absent"),
        (["--data", "absent"], "absent holds no test pictures"),
    ],
)
def test_mistakes_take_one_line(files, capsys, more, message):
    assert main([*OPTIONS, *more, "--out", "runs/out"]) == 1
    assert message in capsys.readouterr().err
    assert not (files / "runs/out/report.json").exists()
