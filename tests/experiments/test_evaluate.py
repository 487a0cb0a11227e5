"""The evaluation command end to end on a tiny world, and the doors to RobustBench."""

import base64
import hashlib
import importlib.metadata
import json
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill.classifier import Classifier
from experiments import evaluate as command
from experiments.__main__ import main
from experiments.cifar import LABELS, cifar10
from experiments.networks import CifarResNet, SmallVgg, cifar_network, folded
from imaging.perceptual import Lpips

pytestmark = pytest.mark.filterwarnings("default")  # matplotlib's and RobustBench's own warnings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sixty pictures laid out as CIFAR-10 is, and a small random classifier."""
    from PIL import Image

    root = tmp_path_factory.mktemp("cifar")
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (60, 1024, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "test_batch.png")
    (root / "test_lables.json").write_text(json.dumps([i % 10 for i in range(60)]))
    torch.manual_seed(0)
    save_file(CifarResNet(8).state_dict(), root / "net.safetensors")
    heads = {name: each.abs() for name, each in Lpips().state_dict().items()}
    save_file(heads, root / "lpips.safetensors")
    return root


def run(world, out, *more):
    flags = ["--classifier", str(world / "net.safetensors"), "--data", str(world), "--out", str(out)]
    small = [
        "--images",
        "6",
        "--draws",
        "2",
        "--eot",
        "2",
        "--attack-steps",
        "2",
        "--t",
        "20",
        "--steps",
        "2",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *flags, *small, *more])
    return stopped.value.code


EVERY = ("transfer", "bpda", "surrogate", "exact", "apgd-eot", "diffhammer", "kang", "square")


def test_every_attack_on_a_purified_classifier_lands_in_one_report(world, tmp_path, capsys):
    assert run(world, tmp_path, "--defense", "diffpure", "--attack", *EVERY) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert [row["attack"] for row in found["rows"]] == ["null", *EVERY, "worst of all"]
    assert all(row["linf"] <= 8 + 1e-3 for row in found["rows"])
    assert any("randomised" in doubt for doubt in found["doubts"])
    assert len(found["indices"]) == 6
    assert found["baselines"][0]["autoattack_acc"] == 0.0
    assert "not eligible" in found["note"]
    assert "| null | 6 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "report.png").stat().st_size > 5000
    assert "| apgd-eot | 6 |" in capsys.readouterr().out


@pytest.mark.parametrize("defense", ["diffpure", "none"])
def test_the_low_frequency_attack_stands_beside_the_norm(world, tmp_path, capsys, defense):
    others = ["exact"] if defense == "diffpure" else ["pgd"]
    flags = ["--defense", defense, "--lpips", str(world / "lpips.safetensors"), "--attack", "lf", *others]
    assert run(world, tmp_path, *flags) == 0
    rows = {row["attack"]: row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    assert list(rows) == ["null", "lf", *others]  # there is no worst of two bounds
    assert rows["null"]["lpips"] == rows["null"]["l2"] == 0
    assert 0 < rows["lf"]["lpips"] <= 0.05
    assert rows[others[0]]["lpips"] > 0
    assert rows[others[0]]["l2"] <= 8 / 255 * 3072**0.5
    assert "| linf | l2 | lpips | seconds |" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert all(line["lpips"] is not None for line in lines)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "8"), ("L2", "0.5")])
def test_baselines_are_those_of_the_norm(world, tmp_path, norm, eps):
    assert run(world, tmp_path, "--attack", "pgd", "--norm", norm, "--eps", eps) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert {row["norm"] for row in found["baselines"]} == {norm}
    assert all(row["l2"] <= 0.5 + 1e-4 for row in found["rows"] if norm == "L2")


@pytest.mark.parametrize("defense", [name for name in command.DEFENSES if name != "diffpure"])
def test_every_defense_can_be_attacked_exactly(world, tmp_path, defense):
    assert run(world, tmp_path, "--defense", defense, "--attack", "exact") == 0


def test_a_second_run_takes_up_the_records(world, tmp_path, monkeypatch):
    assert run(world, tmp_path, "--attack", "pgd") == 0
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert len(lines) == 12
    monkeypatch.setattr(command, "pgd", None)  # nothing is left to attack
    assert run(world, tmp_path, "--attack", "pgd") == 0
    assert (tmp_path / "records.jsonl").read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--attack", "bpda"], "'bpda' does not apply to 'none'; available: pgd, apgd"),
        (["--attack", "pgd", "--images", "61"], "there are 60 test images; asked for 61"),
        (
            ["--attack", "pgd", "--classifier", "absent.safetensors"],
            "there are no weights absent.safetensors",
        ),
        (["--attack", "pgd", "--data", "nowhere"], "nowhere holds no CIFAR-10 test pictures"),
        (["--attack", "lf"], "lf keeps to a perceptual distance: name its weights with --lpips FILE"),
        (
            ["--attack", "lf", "--lpips", "absent.safetensors"],
            "there are no LPIPS weights absent.safetensors",
        ),
        (["--defense", "diffpure", "--t", "5", "--steps", "6"], "takes 1 to 5 steps; got 6"),
    ],
)
def test_mistakes_are_one_line_and_a_code(world, tmp_path, capsys, flags, message):
    assert run(world, tmp_path, *flags) == 1
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert "\n" not in printed


def test_images_are_chosen_evenly_over_the_classes():
    labels = torch.arange(1000) % 10
    chosen = command.balanced(labels, 60, 0)
    assert torch.bincount(labels[chosen]).tolist() == [6] * 10
    assert len(chosen.unique()) == 60
    assert not torch.equal(chosen, command.balanced(labels, 60, 1))
    assert torch.equal(chosen, command.balanced(labels, 60, 0))


def test_cifar_readers_agree(world, tmp_path):
    """The same pictures as rows and as stacked columns."""
    from PIL import Image

    pictures, labels = cifar10(world, train=False)
    assert pictures.shape == (60, 3, 32, 32)
    assert len(LABELS) == 10
    column = pictures.permute(0, 2, 3, 1).reshape(-1, 32, 3).numpy()
    Image.fromarray(column).save(tmp_path / "test_000.webp", lossless=True)
    np.save(tmp_path / "test_labels.npy", labels.numpy().astype(np.uint8))
    others, same = cifar10(tmp_path, train=False)
    assert torch.equal(others, pictures)
    assert torch.equal(same, labels)
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 training pictures"):
        cifar10(tmp_path, train=True)


def test_a_resnets_depth_is_read_off_its_weights(tmp_path):
    torch.manual_seed(0)
    network = CifarResNet(20).eval()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    images = torch.rand(2, 3, 32, 32)
    loaded = cifar_network(tmp_path / "net.safetensors")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(loaded(images), network((images - mean) / std))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_widths_of_a_small_vgg_are_read_off_its_weights(tmp_path):
    torch.manual_seed(0)
    network = SmallVgg([4, 6, 8]).eval()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    images = torch.rand(2, 3, 32, 32)
    loaded = cifar_network(tmp_path / "net.safetensors")
    assert torch.equal(loaded(images), network(images))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_weights_of_an_unknown_network_are_named(tmp_path):
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"no network that is known: stem\.weight"):
        cifar_network(tmp_path / "net.safetensors")


# ---- RobustBench


def test_robustbench_runs_on_a_deterministic_classifier(monkeypatch):
    from experiments import robustbench

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval()
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    evaluation = robustbench._robustbench()
    monkeypatch.setattr(evaluation, "load_clean_dataset", lambda *_, **__: (images, labels))
    clean, robust = robustbench.benchmark(model, eps=8 / 255, n_examples=8)
    assert clean == pytest.approx((model(images).argmax(1) == labels).float().mean().item())
    assert robust <= clean


def test_robustbench_refuses_a_random_classifier():
    from experiments import robustbench

    class Random(nn.Module):
        def forward(self, images):
            return torch.randn(len(images), 10)

    with pytest.raises(ValueError, match="admits deterministic classifiers only"):
        robustbench.benchmark(Random(), eps=8 / 255)


def test_missing_zoo_weights_are_named(tmp_path):
    from experiments import robustbench

    with pytest.raises(ValueError, match="no cifar10 model 'Nobody2020'"):
        robustbench.load_model("Nobody2020", model_dir=tmp_path)
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    (folder / "Carmon2019Unlabeled.pt").write_text("<html>quota exceeded")
    with pytest.raises(FileNotFoundError, match="is a web page, not weights"):
        robustbench.load_model("Carmon2019Unlabeled", model_dir=tmp_path)


def _fake_distribution(folder, *, intact):
    info = folder / "fakebench-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "fakebench.py").write_text("own = True\n")
    digest = hashlib.sha256(b"own = True\n" if intact else b"something else").digest()
    recorded = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fakebench\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"fakebench.py,sha256={recorded},11\nfakebench-1.0.dist-info/RECORD,,\n")
    return importlib.metadata.PathDistribution(info)


def test_a_package_that_another_wheel_overwrote_is_noticed(tmp_path):
    from experiments import robustbench

    assert not robustbench._overwritten(_fake_distribution(tmp_path / "intact", intact=True))
    assert robustbench._overwritten(_fake_distribution(tmp_path / "foreign", intact=False))


def test_an_intact_copy_is_installed_once(tmp_path, monkeypatch):
    from experiments import robustbench

    installed = []

    def install(requirement, folder):
        installed.append(requirement)
        folder.mkdir()
        (folder / "robustbench.py").touch()

    monkeypatch.setattr(robustbench, "_install", install)
    distribution = _fake_distribution(tmp_path / "foreign", intact=False)
    folder = robustbench._intact_copy(distribution, tmp_path)
    assert (folder / "robustbench.py").exists()
    assert robustbench._intact_copy(distribution, tmp_path) == folder
    assert installed == ["robustbench==1.0"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_copy_that_cannot_be_installed_is_one_clear_line(tmp_path, monkeypatch):
    from experiments import robustbench

    failed = types.SimpleNamespace(returncode=1)
    monkeypatch.setattr(robustbench.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(robustbench.BrokenInstallError, match="pip install --force-reinstall --no-deps"):
        robustbench._install("robustbench==1.1.1", tmp_path / "package")


@pytest.mark.parametrize(("name", "left"), [("resnet20", 0), ("mobilenet-v2", 0), ("wrn-10-1", 4)])
def test_folding_keeps_the_function_and_its_gradient(name, left):
    torch.manual_seed(0)
    classifier = Classifier(name).train()
    images = torch.rand(8, 3, 16, 16)
    with torch.no_grad():
        classifier(images)  # statistics that are not those of a fresh network
    classifier.eval().requires_grad_(False)
    found = folded(classifier)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in found.modules()) == left
    slopes = []
    for network in (classifier, found):
        x = images.clone().requires_grad_()
        logits = network(x)
        slopes.append((logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]))
    for expected, got in zip(*slopes, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_what_cannot_be_folded_is_left_as_it_is():
    untraceable, other = Classifier("dynamic-16").eval(), nn.Flatten()
    assert folded(untraceable) is untraceable
    assert folded(other) is other
