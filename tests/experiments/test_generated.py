"""Generated pictures: what is made, that a stopped run goes on, and what is refused."""

import numpy as np
import pytest
import torch

from diffusion.samplers import ddim
from distill.draws import generator_of
from distill.images import labelled
from experiments import generated


@pytest.fixture
def prior(small_prior, monkeypatch):
    model = small_prior(16, ["cat", "dog", "ship"])
    monkeypatch.setattr(generated, "load", lambda name, **more: model)
    return model


OPTIONS = ["--images", "7", "--batch", "3", "--steps", "2", "--side", "16"]


def test_pictures_are_those_of_the_sampler_and_are_trained_on(prior, tmp_path, capsys):
    out = tmp_path / "made.npz"
    assert generated.main(["any", str(out), *OPTIONS]) == 0
    assert "7 pictures of 3 classes" in capsys.readouterr().out
    found = labelled(out, train=True)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    noise = torch.randn(3, 3, 16, 16, generator=generator_of(0, 1))
    with torch.no_grad():
        condition = prior.condition(["0", "1", "2"])
        timesteps = prior.schedule.timesteps(2, spacing="trailing")
        images = prior.decode(ddim(prior, noise, condition, timesteps=timesteps))
    assert torch.equal(found.pixels[3:6], (images.clamp(0, 1) * 255).round().to(torch.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["made.npz"]


def test_a_stopped_run_goes_on(prior, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole.npz", tmp_path / "stopped.npz"
    generated.main(["any", str(whole), *OPTIONS])
    calls, really = [], generated.made

    def dies(model, labels, **more):
        calls.append(len(labels))
        if len(calls) == 2:
            raise OSError("the disk is full")
        return really(model, labels, **more)

    monkeypatch.setattr(generated, "made", dies)
    assert generated.main(["any", str(stopped), *OPTIONS]) == 1
    assert not stopped.exists()
    assert generated.main(["any", str(stopped), *OPTIONS]) == 0
    assert calls == [3, 3, 3, 1]
    assert np.array_equal(np.load(whole)["images"], np.load(stopped)["images"])


@pytest.mark.parametrize(
    ("out", "more", "message"),
    [
        ("made.pt", [], "the set is written as npz; got made.pt"),
        ("made.npz", ["--images", "0"], "one picture or more"),
    ],
)
def test_mistakes_take_one_line(prior, tmp_path, capsys, out, more, message):
    assert generated.main(["any", str(tmp_path / out), *OPTIONS, *more]) == 1
    assert message in capsys.readouterr().err


def test_parts_of_other_settings_and_models_without_classes_are_refused(prior, tmp_path, capsys, monkeypatch):
    out = tmp_path / "made.npz"
    monkeypatch.setattr(generated, "made", lambda *given, **more: torch.zeros(0, 16, 16, 3))
    assert generated.main(["any", str(out), *OPTIONS]) == 0
    (tmp_path / "made.npz.parts").mkdir()
    (tmp_path / "made.npz.parts/settings.json").write_text("{}")
    assert generated.main(["any", str(out), *OPTIONS]) == 1
    assert "other settings: delete it" in capsys.readouterr().err
    monkeypatch.undo()
    assert generated.main(["builtin", str(out), *OPTIONS]) == 1
    assert "no pixel model that is told a class" in capsys.readouterr().err
