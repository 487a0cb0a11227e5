"""Pictures on which teacher and student differ: what moves them, what is kept, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.gaussian import GaussianDenoiser
from diffusion.schedule import NoiseSchedule
from distill.classifier import Classifier, load
from distill.images import labelled
from experiments import disagreement
from experiments.disagreement import disagreeing, gap


class Level(nn.Module):
    """Two classes by one colour's level."""

    def __init__(self, channel, gain):
        super().__init__()
        self.channel, self.gain = channel, gain

    def forward(self, images):
        level = self.gain * (images[:, self.channel].mean((1, 2)) - 0.5)
        return torch.stack([-level, level], 1)


@pytest.fixture
def model():
    return GaussianDenoiser(torch.zeros(3, 8, 8), 0.25, NoiseSchedule.linear())


def test_the_gap_is_the_difference_of_logarithms(generator):
    images = torch.rand(4, 3, 8, 8, generator=generator)
    labels = torch.tensor([0, 1, 1, 0])
    teacher, student = Level(0, 3.0), Level(1, 2.0)
    chances = [network(images).softmax(1)[torch.arange(4), labels] for network in (teacher, student)]
    torch.testing.assert_close(gap(teacher, student, images, labels), (chances[0] / chances[1]).log())


def test_pictures_move_where_the_teacher_is_sure_and_the_student_is_not(model, generator):
    images = 0.5 + 0.1 * torch.randn(20, 3, 8, 8, generator=generator)
    labels = torch.arange(20) % 2
    teacher, student = Level(0, 5.0), Level(1, 5.0)
    made, plain = (
        disagreeing(
            model,
            teacher,
            student,
            images,
            labels,
            t=200,
            steps=5,
            scale=scale,
            generator=torch.Generator().manual_seed(0),
        )
        for scale in (0.5, 0.0)
    )
    raised = gap(teacher, student, made, labels) - gap(teacher, student, plain, labels)
    assert (raised > 0).all()
    # for class 1 red rises and green falls, for class 0 the other way round; blue has no part
    moved = (made - plain).mean((2, 3))
    assert (moved[labels == 1, 0] > 0).all()
    assert (moved[labels == 1, 1] < 0).all()
    assert (moved[labels == 0, 0] < 0).all()
    assert moved[:, 2].abs().max() < 1e-5


def test_the_command_keeps_what_the_teacher_still_knows(tmp_path, monkeypatch, small_prior, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(disagreement, "load", lambda name, **more: small_prior(16, ["cat", "dog"]))
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        Classifier("resnet8", classes=2).save(f"{name}.safetensors")
    teacher = load("teacher.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        labels = teacher(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    labels[0] = 1 - labels[0]
    labels[1:3] = [0, 1]
    np.savez("toy.npz", images=images, labels=labels)
    options = ["any", "--teacher", "teacher.safetensors", "--student", "student.safetensors"]
    options += ["--data", "toy.npz", "--images", "12", "--batch", "5", "--t", "20", "--steps", "2"]
    assert disagreement.main([*options, "--out", "made.npz"]) == 0
    assert "of 12 pictures kept" in capsys.readouterr().out
    found = labelled("made.npz", train=True)
    with torch.no_grad():
        assert torch.equal(teacher(found.pixels / 255).argmax(1), found.labels)
    for more, message in (
        (["--out", "made.pt"], "written as npz"),
        (["--out", "a.npz", "--images", "99"], "there are 12 training pictures; asked for 99"),
        (["--out", "a.npz", "--t", "0"], "t counts steps into the noise"),
        (["--out", "a.npz", "--student", "none"], "there are no weights none"),
    ):
        assert disagreement.main([*options, *more]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a.npz").exists()
