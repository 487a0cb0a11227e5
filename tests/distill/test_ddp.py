"""Two processes train as one does on the same whole batches."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import lightning as L
import torch
from torch import nn
from distill import methods
from distill.averaging import Ema
from distill.awp import Awp
from distill.data import LabelledImages
from distill.module import RobustTraining
from distill.schedules import Piecewise

torch.set_num_threads(1)
name, devices, path, out = sys.argv[1:]


def network(seed):
    # normalisation over a batch would see another batch
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3))


method = {
    "b-mtard": methods.BMtard(steps=2, weight_rate=0.3, temperature_rate=0.1),
    "awp": methods.Trades(steps=2),
}[name]
training = RobustTraining(
    network(0),
    method,
    network(1),
    network(2),
    learning_rate=0.05,
    schedule=Piecewise((1,)),
    average=Ema(0.9),
    awp=Awp(0.05) if name == "awp" else None,
)
trainer = L.Trainer(
    max_epochs=2,
    accelerator="cpu",
    devices=int(devices),
    strategy="ddp" if devices == "2" else "auto",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
    num_sanity_val_steps=0,
)
trainer.fit(training, datamodule=LabelledImages(path, 16, held_out=32))
if trainer.is_global_zero:
    figures = {name: trainer.callback_metrics[name] for name in ("val_clean", "val_robust", "loss_robust")}
    torch.save({**training.state_dict(), **figures}, out)
"""


@pytest.fixture
def train(tmp_path):
    """Train on so many processes; returns weights, balances, averages and figures."""
    drawn = np.random.default_rng(0)
    labels = np.arange(96) % 3
    coarse = drawn.integers(60, 196, (3, 4, 4, 3))[labels].repeat(4, 1).repeat(4, 2)
    images = (coarse + drawn.normal(0, 20, coarse.shape)).clip(0, 255).astype(np.uint8)
    np.savez(tmp_path / "toy.npz", images=images, labels=labels)
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

    def run(name, devices):
        out = tmp_path / f"{name}{devices}.pt"
        command = [sys.executable, "train.py", name, str(devices), "toy.npz", str(out)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(out, weights_only=True)

    return run


@pytest.mark.parametrize("name", ["b-mtard", "awp"])
def test_two_processes_are_one(train, name):
    one, two = train(name, 1), train(name, 2)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: key + text
        )
    if name == "b-mtard":
        assert one["state.losses.weights"][0] != 0.5
        assert one["state.entropies.temperatures"].max() > 1
