"""The recipe of the CIFAR-10 diffusion model at toy size: it trains, exports, and purifies."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from purify import DiffPure

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]


def test_the_recipe_makes_a_prior_that_purifies(tmp_path, monkeypatch):
    from PIL import Image

    from diffusion.load import load
    from experiments.__main__ import main
    from experiments.cifar import LABELS
    from experiments.pixel_denoiser import export

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
    main(["fit", "--config", str(CONFIGS / "cifar10_denoiser.yaml"), *flags])
    export("runs/cifar10_denoiser/last.ckpt", "runs/cifar10")
    model = load("runs/cifar10")
    assert model.labels == LABELS
    images = torch.rand(2, 3, 32, 32)
    assert DiffPure(model, t=50, steps=2)(images).shape == images.shape
