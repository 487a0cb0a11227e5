"""Class-conditional models of pixels that go on learning, and what they draw: kept, so that runs go on."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.finetune import train
from diffusion.load import load
from diffusion.pixel import PixelDiffusion
from distill.images import to_unit
from experiments.cifar_card import sample
from experiments.progress import mean_every
from imaging.whole import whole, write_whole


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides about the training and the drawing, and where both are kept."""
    parser.add_argument("--model", default="cifar10", help="of pixels, told a class")
    parser.add_argument("--steps", type=int, default=1500, help="updates of a diffusion model")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--drawn", type=int, default=200, help="pictures of each class")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")


def settings_of(given: argparse.Namespace) -> dict[str, str]:
    """Write the settings down, as what lies beside them was made with them.

    Raises ValueError if the folder is of other settings.
    """
    settings = {key: str(value) for key, value in vars(given).items() if key not in ("out", "device")}
    path = given.out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise ValueError(f"{given.out} holds a run with other settings: name another --out")
    given.out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=1) + "\n")
    return settings


def seeded(given: argparse.Namespace) -> torch.Generator:
    """Return a generator at the beginning of the run's draws."""
    return torch.Generator().manual_seed(given.seed)


def model_of(given: argparse.Namespace) -> PixelDiffusion:
    """Return the model that is named. Raises ValueError if it is told no class, and what `load` raises."""
    model = load(given.model)
    if not isinstance(model, PixelDiffusion) or not model.classes:
        raise ValueError(f"{model.name} is not told a class: take one that is, such as cifar10")
    return model


def taught(
    given: argparse.Namespace, model: PixelDiffusion, images: Tensor, labels: Tensor, path: Path
) -> PixelDiffusion:
    """Return the model after it went on learning on pictures of classes; read from `path` if it is there."""
    copy = model.trainable_copy().eval()
    if path.exists():
        copy.denoiser.load_state_dict(load_file(path))
        return copy.freeze()
    copy = copy.to(given.device)
    train(
        copy,
        copy.encode(images.to(given.device)),
        copy.condition([str(int(label)) for label in labels]),
        steps=given.steps,
        learning_rate=given.learning_rate,
        batch_size=given.batch,
        generator=seeded(given),
        callback=mean_every(100, f"{path.stem}, "),
    )
    copy = copy.cpu().freeze()
    with whole(path) as partial:
        save_file({name: each.contiguous() for name, each in copy.denoiser.state_dict().items()}, partial)
    return copy


def drawn_by(given: argparse.Namespace, model: PixelDiffusion, labels: Tensor, path: Path) -> Tensor:
    """Return pictures in [0, 1] that a model draws of classes, as bytes would hold them; kept at `path`."""
    if not path.exists():
        made = sample(model, labels, steps=given.sampling_steps, seed=given.seed).clamp(0, 1)
        with whole(path) as partial:
            save_file({"images": (made * 255).round().to(torch.uint8)}, partial)
    return to_unit(load_file(path)["images"])
