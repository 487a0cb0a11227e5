"""Seconds per step and peak memory of each method, the plain way and ours.

`python -m experiments.bench.protect` prints a Markdown table. The plain way is what released code does: both
networks in one graph, weights that collect gradients, float32, the picture and the target encoded again
wherever a term needs them. Ours is the method as shipped. Each case runs in a fresh process, so that the
peak is its own; the ratio of two cases of one run is the figure to quote.

    --shape builtin|sd15     the built-in model, or a random model of Stable Diffusion 1.5's shape
    --width 0.5              scales the channels of the latter, to fit a small machine
    --side 512 --steps 3 --device cpu
    --whole                  instead: every method from beginning to end, at its own number of steps, on a
                             model that suits it, after a warm-up
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attacks import autocast
from attacks.objectives import value_and_gradient
from diffusion.choice import network_precision
from diffusion.load import load
from diffusion.losses import denoising_loss, score_gradient
from diffusion.model import DiffusionModel, Latents
from diffusion.samplers import ddim_mean, denoise, draw, posterior_deviation, steps_of
from imaging.batch.memory import PeakMemory
from protect.collective import CollectiveMethod
from protect.methods import METHODS as EVERY
from protect.methods import create
from protect.methods.atkpdm import AtkPDM
from protect.methods.draws import draw_noise, first_latent
from protect.methods.instant import Instant
from protect.targets import grey, texture

ROUTES = ("plain", "ours", "ours-float32")
COLUMNS = ("method", "plain s", "ours s", "ratio", "ratio in float32", "plain MB", "ours MB", "ratio")
WHOLE = ("method", "model", "pictures", "px", "steps", "seconds", "to the first step", "megabytes")
METHODS = (
    "photoguard",
    "mist-textural",
    "advdm",
    "mist",
    "sds-minus",
    "sdst-minus",
    "diffusionguard",
    "photoguard-diffusion",
)
Step = Callable[[Tensor], object]


def sd15_shaped(width: float, *, inpaints: bool = False) -> DiffusionModel:
    """A random model of Stable Diffusion 1.5's shape, or of its inpainting model's, with `width` times its
    channels; its text is fixed."""
    from types import SimpleNamespace

    from diffusers import AutoencoderKL, UNet2DConditionModel

    from diffusion.latent import LatentDiffusion
    from diffusion.schedule import NoiseSchedule

    class Words(torch.nn.Module):
        def forward(self, prompts: list[str], rows: Tensor | None = None) -> SimpleNamespace:
            return SimpleNamespace(last_hidden_state=torch.zeros(len(prompts), 77, 768))

    def channels(*full: int) -> tuple[int, ...]:
        return tuple(int(count * width) // 32 * 32 for count in full)

    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels(128, 256, 512, 512),
        layers_per_block=2,
    )
    unet: Any = UNet2DConditionModel(
        sample_size=64,
        in_channels=9 if inpaints else 4,
        block_out_channels=channels(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    words: Any = Words()
    return LatentDiffusion(vae, unet, NoiseSchedule.scaled_linear(), texts=[words], name="sd15-shaped")


def plain_step(name: str, model: DiffusionModel, target: Tensor) -> Step:
    """One step as released code takes it, up to the gradient in `images.grad`."""
    with torch.no_grad():
        condition = model.condition(["a photo"])
    model.requires_grad_(True)

    def denoising(images: Tensor) -> Tensor:
        z = model.encode(images)
        t, noise = draw_noise(model, z, None)
        return denoising_loss(model, z, noise, t, condition).sum()

    def textural(images: Tensor) -> Tensor:
        return (model.encode(images) - model.encode(target)).square().sum()

    def distilled(images: Tensor) -> Tensor:
        z = model.encode(images)
        t, noise = draw_noise(model, z, None)
        return (z * score_gradient(model, z, noise, t, condition)).sum()

    def unused(images: Tensor) -> Tensor:
        with torch.no_grad():
            return 0 * (model.encode(images).sum() + model.encode(target).sum())

    def seen(images: Tensor) -> Latents:
        concat = model.inpainting(condition, images, 1 - centre(images)).concat
        assert concat is not None
        return concat

    def first_step(images: Tensor) -> Tensor:
        z = seen(images)
        z_t = first_latent(model, z, 751, None)
        told = replace(condition, concat=z)
        return model.predict_noise(z_t, torch.full((len(z),), 751, device=z.device), told).norm()

    def inpainted(images: Tensor) -> Tensor:
        concat = seen(images)
        told = replace(condition, concat=concat)
        times = model.schedule.timesteps(4, size=(concat.shape[-2], concat.shape[-1]))
        z = first_latent(model, concat, times[0], None)
        for step in steps_of(model.schedule, times, model.schedule.final):
            clean, noise = denoise(model, z, step, told, None, 1.0)
            spread = posterior_deviation(step)
            z = ddim_mean(step, clean, noise, spread) + spread * draw(z)
        return (model.decode(z, clamp=False) - grey(*images.shape[-2:]).to(images)).norm()

    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "diffusionguard": first_step,
        "photoguard-diffusion": inpainted,
        "photoguard": lambda images: model.encode(images).norm(),
        "mist-textural": textural,
        "advdm": lambda images: unused(images) + denoising(images),
        "mist": lambda images: denoising(images) - textural(images),
        "sds-minus": distilled,
        "sdst-minus": lambda images: distilled(images) - textural(images),
    }

    def step(images: Tensor) -> None:
        model.zero_grad()
        losses[name](images.detach().requires_grad_()).backward()

    return step


def our_step(
    name: str, model: DiffusionModel, images: Tensor, target: Tensor, precision: torch.dtype
) -> Step:
    """One step as the method takes it inside `pgd`."""
    method = create(name)
    mask = centre(images) if method.needs_mask else None
    objective = method.objective(model, images, target=target, mask=mask, generator=None)
    if precision != torch.float32:
        objective = autocast(objective, precision)
    return lambda images: value_and_gradient(objective, images)


def centre(images: Tensor) -> Tensor:
    """A mask that is white in the middle, a quarter of the picture."""
    height, width = images.shape[-2:]
    mask = torch.zeros_like(images[:, :1])
    mask[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    return mask


def run_case(case: dict) -> dict:
    """Measure one case in this process: median seconds per step and peak megabytes above the loaded model."""
    device = torch.device(case["device"])
    inpaints = create(case["method"]).needs_inpainting
    if case["shape"] == "builtin":
        model = load("builtin-inpainting" if inpaints else "builtin")
    else:
        model = sd15_shaped(case["width"], inpaints=inpaints)
    model.to(device)
    images = torch.rand(1, 3, case["side"], case["side"], device=device)
    target = texture(case["side"], case["side"]).to(device)
    precision = network_precision("auto", device) if case["route"] == "ours" else torch.float32
    if case["route"] == "plain":
        step = plain_step(case["method"], model, target)
    else:
        step = our_step(case["method"], model, images, target, precision)
    small = torch.rand(1, 3, 64, 64, device=device)
    if case["route"] == "plain":
        plain_step(case["method"], model, texture(64, 64).to(device))(small)
    else:  # code and kernels that load once are not a step's cost
        our_step(case["method"], model, small, texture(64, 64).to(device), precision)(small)
    gc.collect()
    peak = PeakMemory(device)
    before = peak.megabytes()
    seconds = []
    for _ in range(case["steps"] + 1):
        start = time.perf_counter()
        step(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    steady = sorted(seconds[1:])[len(seconds[1:]) // 2]
    return {
        **case,
        "seconds": steady,
        "megabytes": peak.megabytes() - before,
        "precision": str(precision),
    }


def run_whole(case: dict) -> dict:
    """Measure a method from beginning to end: seconds, of them those to the end of the first step, and peak
    megabytes above the loaded model."""
    device = torch.device(case["device"])
    method = create(case["method"])
    several = isinstance(method, CollectiveMethod)
    count = 4 if several else 1
    side = 32 if isinstance(method, AtkPDM) else case["side"]
    name = "cifar10" if isinstance(method, AtkPDM) else "builtin"
    name = "builtin-inpainting" if method.needs_inpainting else name
    model = load(name, device=device)
    precision = network_precision("auto", device)

    def protect(side: int, steps: int, callback: Callable[..., None] | None = None) -> None:
        images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
        replace(method, steps=steps).protect(
            images,
            model,
            mask=centre(images) if method.needs_mask else None,
            generator=torch.Generator().manual_seed(0),
            precision=precision,
            callback=callback,
        )

    first: list[float] = []
    protect(min(64, side), 1)  # code and kernels that load once are not a picture's cost
    gc.collect()
    peak = PeakMemory(device)
    before, start = peak.megabytes(), time.perf_counter()
    protect(side, method.steps, lambda *_: first.append(time.perf_counter()) if not first else None)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {
        "method": case["method"],
        "model": "its own" if isinstance(method, Instant) else name,
        "pictures": count,
        "px": side,
        "steps": method.steps,
        "seconds": time.perf_counter() - start,
        "to the first step": first[0] - start,
        "megabytes": peak.megabytes() - before,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("builtin", "sd15"), default="builtin")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="*", metavar="METHOD")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.case:
        case = json.loads(given.case)
        print(json.dumps(run_whole(case) if case.get("whole") else run_case(case)))
        return
    if given.whole:
        _whole(given.methods or list(EVERY), given.side, given.device)
        return
    shared = {key: getattr(given, key) for key in ("shape", "width", "side", "steps", "device")}
    print(f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", sep="\n")
    for method in given.methods or METHODS:
        plain, ours, single = (_in_fresh_process({**shared, "method": method, "route": r}) for r in ROUTES)
        ratios = [case["seconds"] / plain["seconds"] for case in (ours, single)]
        memory = ours["megabytes"] / plain["megabytes"]
        speed = f"{plain['seconds']:.3f} | {ours['seconds']:.3f} | {ratios[0]:.2f} | {ratios[1]:.2f}"
        peak = f"{plain['megabytes']:.0f} | {ours['megabytes']:.0f} | {memory:.2f}"
        print(f"| {method} | {speed} | {peak} |", flush=True)


def _whole(methods: Sequence[str], side: int, device: str) -> None:
    print(f"| {' | '.join(WHOLE)} |", "|---" * len(WHOLE) + "|", sep="\n")
    for method in methods:
        found = _in_fresh_process({"method": method, "side": side, "device": device, "whole": True})
        cells = [found[column] for column in WHOLE]
        shown = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
        print(f"| {' | '.join(shown)} |", flush=True)


def _in_fresh_process(case: dict) -> dict:
    """Seconds of one process, and megabytes of another whose freed blocks go back to the system at once.

    Otherwise what the C library holds back, which differs from run to run, is counted as the method's.
    """
    command = [sys.executable, "-m", "experiments.bench.protect", "--case"]
    thrifty = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "4194304"}
    found = []
    for environment in (None, thrifty):
        finished = subprocess.run(
            [*command, json.dumps(case)], check=True, capture_output=True, text=True, env=environment
        )
        found.append(json.loads(finished.stdout.splitlines()[-1]))
    return {**found[0], "megabytes": found[1]["megabytes"]}


if __name__ == "__main__":
    main()
