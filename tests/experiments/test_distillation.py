"""Every configuration of robust training at toy size, the command's answers to mistakes, and the export."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from distill.classifier import Classifier, load

CONFIGS = sorted((Path(__file__).parents[2] / "experiments" / "configs").glob("*_cifar10.yaml"))
SMALL = next(path for path in CONFIGS if path.stem == "small_cifar10")
RECIPES = [path for path in CONFIGS if path != SMALL]
# Lightning talks through warnings (few workers, small batches); none of them is about our code.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Run configurations for two steps on forty-eight small pictures, with the teachers that ship."""
    from experiments.__main__ import main
    from experiments.discrete import DiscreteTraining

    monkeypatch.chdir(tmp_path)
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    np.savez("toy.npz", images=images, labels=np.arange(48) % 10)
    DiscreteTraining(block_out_channels=(8, 8), latent_channels=4, codes=16).autoencoder.save_pretrained(
        "runs/discrete"
    )
    toy = {
        "data.root": "toy.npz",
        "data.held_out": 16,
        "data.batch_size": 16,
        "model.student.architecture": "resnet8",
        "model.method.steps": 1,
        "trainer.max_epochs": 1,
        "trainer.precision": "32-true",
        "trainer.log_every_n_steps": 1,
        "trainer.enable_model_summary": "false",
    }

    def run(*configs, **changes):
        given = {**toy, **{key.replace("__", "."): value for key, value in changes.items()}}
        flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
        main(["fit", *(part for path in configs for part in ("--config", str(path))), *flags])

    return run


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_configuration_trains_logs_keeps_the_best_and_the_last_and_exports(fit, path):
    from experiments.distillation import export

    # the network of many is no other network
    dynamic = {"model__student__architecture": "dynamic-32"} if "proard" in path.stem else {}
    fit(path, **dynamic)
    run = Path("runs") / path.stem
    header, *rows = (run / "log" / "metrics.csv").read_text().splitlines()
    assert {"val_clean", "val_robust", "loss"} <= set(header.split(","))
    assert rows
    assert {each.name for each in run.glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    student = export(str(run / "last.ckpt"), "student.safetensors")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load("student.safetensors")(images), student(images))
    saved = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    part = "average.network" if "average.updates" in saved else "student"
    assert torch.equal(student.network.conv1.weight, saved[f"{part}.network.conv1.weight"])


def test_there_is_a_configuration_for_every_method():
    named = {
        yaml.safe_load(path.read_text())["model"]["init_args"]["method"]["class_path"] for path in RECIPES
    }
    from distill import methods

    # IAD-II is there for those who have two teachers for it, without a recipe of ours
    assert {name.removeprefix("distill.methods.") for name in named} == set(methods.__all__) - {"IadTwo"}


@pytest.mark.slow
def test_the_small_recipe_is_laid_over_another(fit):
    fit(next(path for path in RECIPES if path.stem == "trades_cifar10"), SMALL)
    saved = yaml.safe_load(Path("runs/trades_cifar10/log/config.yaml").read_text())["model"]["init_args"]
    assert saved["method"]["class_path"] == "distill.methods.Trades"
    assert saved["method"]["init_args"]["eps"] == "4/255"
    assert saved["method"]["init_args"]["start"] == "gaussian"
    assert saved["schedule"]["class_path"] == "distill.schedules.Cyclic"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Option 'betta' is not accepted", "; did you mean 'beta'?"),
        ("unrecognized arguments: --modle 3", "; did you mean 'model'?"),
        ("Key 'trainer.max_epoks' is not expected", "; did you mean 'max_epochs'?"),
        ("Option 'zzz' is not accepted", ""),
        ("something else", ""),
    ],
)
def test_the_nearest_key_is_named(message, expected):
    from experiments.cli import hint

    assert hint(message, ["model", "data", "model.beta", "trainer.max_epochs"]) == expected


def test_a_reason_is_one_line_without_what_was_given():
    from experiments.cli import reason

    message = (
        'Parser key "model":\n  Does not validate\n  Subtypes: [a, b]\n  Errors:\n    - eps is 8\n'
        "    - Expected a <class 'NoneType'>\n  Given value: Namespace(very='long')"
    )
    assert reason(message) == 'key "model": eps is 8'
    assert reason("plain\n  text") == "plain text"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__method__betta": 3}, "'betta' is not accepted; did you mean 'beta'?"),
        ({"model__learning_rat": 3}, "did you mean 'learning_rate'?"),
        ({"data__held_ou": 3}, "did you mean 'held_out'?"),
        (
            {"model__method__eps": 8},
            "eps is a radius of images in [0, 1], such as 8/255, at most 64/255; got 8",
        ),
        ({"data__root": "absent"}, "absent holds no train pictures"),
        ({"model__student__classes": 7}, "the data has 10 classes; the student has 7"),
    ],
)
def test_mistakes_are_one_line_and_a_code(fit, capsys, changes, message):
    with pytest.raises(SystemExit) as stopped:
        fit(next(path for path in RECIPES if path.stem == "trades_cifar10"), **changes)
    assert stopped.value.code in (1, 2)
    printed = capsys.readouterr().err.strip().splitlines()
    assert message in printed[-1]


@pytest.mark.slow
def test_an_unknown_key_in_a_file_is_named_with_its_neighbour(fit, capsys, tmp_path):
    text = next(path for path in RECIPES if path.stem == "trades_cifar10").read_text()
    (tmp_path / "wrong.yaml").write_text(text.replace("weight_decay", "weight_decai"))
    with pytest.raises(SystemExit):
        fit(tmp_path / "wrong.yaml")
    assert "did you mean 'weight_decay'?" in capsys.readouterr().err


def test_a_checkpoint_that_names_no_network_is_refused(tmp_path):
    from experiments.distillation import main

    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit, match="does not say which network it holds"):
        main([str(tmp_path / "other.ckpt"), str(tmp_path / "out.safetensors")])
    assert not (tmp_path / "out.safetensors").exists()


def test_an_exported_student_may_be_rounded_to_half_its_size(tmp_path):
    from experiments.distillation import main

    student = Classifier("resnet8").eval()
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    torch.save({"state_dict": state, "classifier": student.config}, tmp_path / "own.ckpt")
    for name, more in (("whole", []), ("half", ["--half"])):
        main([str(tmp_path / "own.ckpt"), str(tmp_path / f"{name}.safetensors"), *more])
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    images = torch.rand(4, 3, 32, 32)
    whole, half = (load(tmp_path / f"{name}.safetensors")(images) for name in ("whole", "half"))

    assert sizes[0] < 0.6 * sizes[1]
    assert torch.equal(whole, student(images))
    torch.testing.assert_close(half, whole, atol=1e-2, rtol=1e-2)


def test_a_teacher_of_the_zoo_that_is_absent_is_named(tmp_path):
    from experiments.distillation import Zoo

    with pytest.raises(ValueError, match="no cifar10 model 'Nobody2020'"):
        Zoo("Nobody2020", model_dir=str(tmp_path))
