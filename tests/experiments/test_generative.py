"""The measurement of attacks that are made with a model: what it reports is what lies in the files."""

import json

import pytest
import torch
from torch import nn

from experiments import generative
from imaging.io import read


@pytest.fixture(scope="module")
def world(small_prior):
    torch.manual_seed(0)
    images = torch.randint(256, (2, 3, 32, 32)) / 255
    classifier = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 10)).eval().requires_grad_(False)
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    names = [generative.LABELS[label] for label in labels.tolist()]
    model = small_prior(32, generative.LABELS)
    return generative.World(model, classifier, images, labels, names, (labels + 1) % 10, 3)


def test_figures_are_those_of_the_files(world, tmp_path):
    figures = list(generative.measure(world, ["pgd", "atkpdm"], tmp_path, batch=1))
    for one in figures:
        made = torch.cat([read(path).pixels for path in sorted((tmp_path / one.attack).glob("*.png"))])
        with torch.no_grad():
            right = world.classifier(made).argmax(1) == world.labels
        assert one.right == pytest.approx(float(right.float().mean()))
        assert one.linf == pytest.approx(float((made - world.images).abs().flatten(1).amax(1).mean() * 255))
        assert one.linf <= 8.01
        assert one.idle == 1.0
    assert figures[0].right < 1
    assert generative.table(figures).count("\n") == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*generative.ATTACKS} - {*generative.WORDED}))
def test_every_attack_runs_and_does_nothing_where_nothing_is_to_be_gained(world, tmp_path, name):
    (figures,) = generative.measure(world, [name], tmp_path)
    assert 0 <= figures.right <= 1
    assert len(list((tmp_path / name).glob("*.png"))) == 2
    if name in ("pgd", "atkpdm", "atkpdm-classifier", "p2p"):  # these alone leave pictures as they were
        for path in (tmp_path / f"{name}-idle").glob("*.png"):
            off = (read(path).pixels - world.images[int(path.stem)]).abs().max()
            assert off < 0.75 / 255 or name == "p2p"


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert generative.main(["cifar10", "--data", str(tmp_path)]) == 1
    assert "holds no CIFAR-10 test pictures" in capsys.readouterr().err
    assert generative.main(["builtin", "--data", str(tmp_path), "--images", "2"]) == 1
    assert "holds 0 named ImageNet pictures; asked for 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_report_is_written_beside_the_pictures(world, tmp_path, monkeypatch):
    monkeypatch.setattr(generative, "_cifar", lambda given: world)
    assert generative.main(["cifar10", "--data", ".", "--attack", "pgd", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "report.json").read_text())
    assert (row["attack"], row["images"]) == ("pgd", 2)
    assert "| pgd |" in (tmp_path / "table.md").read_text()
