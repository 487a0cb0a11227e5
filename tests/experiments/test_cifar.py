"""The recipe of the CIFAR-10 diffusion model at toy size: it trains, exports, and purifies."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from purify import DiffPure

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Run a configuration for three steps on forty pictures; returns the checkpoint."""
    from PIL import Image

    from experiments.__main__ import main

    generator = np.random.default_rng(0)
    for name, names in (("data_batch_1.png", "train_lables.json"), ("test_batch.png", "test_lables.json")):
        Image.fromarray(generator.integers(0, 256, (40, 1024, 3), dtype=np.uint8)).save(tmp_path / name)
        (tmp_path / names).write_text(json.dumps([i % 10 for i in range(40)]))
    monkeypatch.chdir(tmp_path)
    toy = {
        "data.root": ".",
        "data.batch_size": 8,
        "trainer.max_steps": 3,
        "trainer.val_check_interval": 3,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_model_summary": "false",
        "trainer.callbacks.every_n_train_steps": 1,
    }
    flags = [part for key, value in toy.items() for part in (f"--{key}", str(value))]

    def run(name):
        main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *flags])
        return f"runs/{name}/last.ckpt"

    return run


def test_the_recipe_makes_a_prior_that_purifies(fit):
    from diffusion.load import load
    from experiments.cifar import LABELS
    from experiments.pixel_denoiser import export

    export(fit("cifar10_denoiser"), "runs/cifar10")
    model = load("runs/cifar10")
    assert model.labels == LABELS
    images = torch.rand(2, 3, 32, 32)
    assert DiffPure(model, t=50, steps=2)(images).shape == images.shape


def test_the_recipe_makes_a_purifier_of_one_step(fit):
    from diffusion.load import load
    from experiments.one_step import export

    export(fit("cifar10_one_step"), "runs/one_step")
    model = load("runs/one_step")
    images = torch.rand(2, 3, 32, 32)
    assert DiffPure(model, t=100, steps=1)(images).shape == images.shape


def test_the_walk_that_is_distilled_is_ddims_and_a_student_who_knows_its_end_has_no_loss():
    from diffusion.gaussian import GaussianDenoiser
    from diffusion.samplers import ddim
    from diffusion.schedule import NoiseSchedule
    from experiments.one_step import OneStepDistillation

    training = OneStepDistillation(patch=1, block_out_channels=(32,), steps=4)
    teacher = GaussianDenoiser(torch.zeros(3, 32, 32), 0.25, NoiseSchedule.linear())
    training.teacher = [teacher]
    images, noise = torch.rand(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    states, end = training.walk(images, 100, noise)
    times = [time for time, _ in states]
    expected = ddim(teacher, states[0][1], timesteps=times, end=None)
    torch.testing.assert_close(end, expected, atol=1e-5, rtol=0)

    class Knowing(torch.nn.Module):
        def forward(self, z_t, t):
            alpha, sigma = teacher.schedule.at(t, z_t)
            return SimpleNamespace(sample=(alpha * z_t - end.repeat(len(z_t) // len(end), 1, 1, 1)) / sigma)

    assert training.losses(states, end).shape == (4, 2)
    training.unet = Knowing()
    assert training.losses(states, end).max() < 1e-6


def test_the_recipe_makes_a_codec_of_discrete_pictures(fit):
    from experiments.discrete import Discretiser, export

    export(fit("cifar10_discrete"), "runs/discrete")
    codec = Discretiser("runs/discrete").train()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    given = codec(images)
    assert given.shape == images.shape
    assert 0 <= given.min() <= given.max() <= 1
    assert not given.requires_grad
    # a picture is one of finitely many: sixty-four codes decide about it
    quantised = codec.autoencoder.quantize(codec.autoencoder.encode(2 * images - 1).latents)[0]
    codes = codec.autoencoder.quantize.embedding.weight
    found = torch.cdist(quantised.permute(0, 2, 3, 1).reshape(-1, codes.shape[1]), codes).amin(1)
    assert len(found) == 128
    assert found.max() < 1e-3
