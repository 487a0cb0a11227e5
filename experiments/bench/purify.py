"""Seconds and memory of a gradient through a purifier, by way of getting it; seconds of purifying.

`python -m experiments.bench.purify` prints three Markdown tables: memory and time of each gradient mode for
chains of 5, 20 and 100 steps; the time of an EOT gradient of 20 draws as one batch against the loop over
draws that published code runs; and the time of purifying 100 images by 10 steps of DDIM against 100 of DDPM,
with the accuracy that is left where a classifier and CIFAR-10 are given. Each case runs in a fresh process;
quote ratios of one run. "states" is what a replay keeps beside its graph: one picture per step.

    --images 8 --steps 5 20 100 --device cpu --classifier resnet56.safetensors --data CIFAR
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attacks.adaptive import BPDA, Adjoint, Checkpointed, Exact, Expected, ScoreOnly, Surrogate
from attacks.losses import cross_entropy
from attacks.objectives import value_and_gradient
from diffusion.load import load
from diffusion.model import DiffusionModel
from experiments.cifar import cifar10
from experiments.networks import cifar_network
from imaging.batch.memory import PeakMemory
from purify import DiffPure, PurifiedClassifier, Purifier

Wrap = Callable[[Purifier, DiffusionModel], nn.Module]
MODES: dict[str, Wrap] = {
    "plain autograd": lambda purifier, model: purifier,
    "checkpointed": lambda purifier, model: Checkpointed(purifier),
    "exact": lambda purifier, model: Exact(purifier),
    "surrogate, 2 steps": lambda purifier, model: Surrogate(purifier, DiffPure(model, t=100, steps=2)),
    "adjoint": lambda purifier, model: Adjoint(purifier),
    "score only": lambda purifier, model: ScoreOnly(purifier),
    "bpda": lambda purifier, model: BPDA(purifier),
}


def classifier() -> nn.Module:
    """A small convolutional network: its cost is next to none."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))
    return nn.Sequential(*layers).eval().requires_grad_(False)


def run_case(case: dict) -> dict:
    """Measure one case in this process."""
    device = torch.device(case["device"])
    model = load("cifar10", device=device)
    if "sampler" in case:
        return purify_case(case, model)
    purifier = DiffPure(model, t=100, steps=case["steps"])
    network = classifier().to(device)
    images = torch.rand(case["images"], 3, 32, 32, device=device)
    labels = torch.arange(len(images), device=device) % 10
    gradient = _gradient(case, model, purifier, network, labels)
    gradient(images[:1])  # code and kernels that load once are not a gradient's cost
    gc.collect()
    peak = PeakMemory(device)
    before, seconds = peak.megabytes(), []
    for _ in range(case["repeat"]):
        start = time.perf_counter()
        gradient(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {**case, "seconds": min(seconds), "megabytes": peak.megabytes() - before}


def purify_case(case: dict, model: DiffusionModel) -> dict:
    """Purify test images, or random ones where there are none, and classify them where that can be done."""
    device = torch.device(case["device"])
    images, labels = torch.rand(100, 3, 32, 32), None
    if case["data"]:
        pictures, labels = cifar10(case["data"], train=False)
        images = pictures[:100].float() / 255
    purifier = DiffPure(model, t=100, steps=case["steps"], sampler=case["sampler"]).seeded(0)
    with torch.no_grad():
        purifier(images[:1].to(device))
        start = time.perf_counter()
        purified = purifier(images.to(device)).cpu()
        seconds = time.perf_counter() - start
        accuracy = None
        if labels is not None and case["classifier"]:
            said = cifar_network(case["classifier"])(purified).argmax(1)
            accuracy = 100 * float((said == labels[:100]).float().mean())
    return {**case, "seconds": seconds, "accuracy": accuracy}


def _gradient(
    case: dict, model: DiffusionModel, purifier: Purifier, network: nn.Module, labels: Tensor
) -> Callable[[Tensor], object]:
    if case["mode"] == "loop over draws":
        defended = PurifiedClassifier(Exact(purifier), network)

        def looped(images: Tensor) -> Tensor:
            total = torch.zeros_like(images)
            for _ in range(case["draws"]):
                leaf = images.detach().requires_grad_()
                cross_entropy(defended(leaf), labels[: len(images)]).sum().backward()
                assert leaf.grad is not None
                total += leaf.grad
            return total / case["draws"]

        return looped
    mode = "exact" if case["mode"] == "one batch" else case["mode"]
    defended = PurifiedClassifier(MODES[mode](purifier, model), network)

    def batched(images: Tensor) -> object:
        objective = Expected(defended, labels[: len(images)], cross_entropy, draws=case["draws"])
        return value_and_gradient(objective, images)

    return batched


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="*", default=[5, 20, 100])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--classifier")
    parser.add_argument("--data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.case:
        print(json.dumps(run_case(json.loads(given.case))))
        return
    shared = {"device": given.device, "images": given.images, "repeat": given.repeat, "draws": 1}
    heads = [f"{kind}, {steps} steps" for steps in given.steps for kind in ("MB", "s")]
    print(f"| gradient | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|", sep="\n")
    for mode in MODES:
        cases = [_in_fresh_process({**shared, "mode": mode, "steps": steps}) for steps in given.steps]
        cells = [f"{case['megabytes']:.0f} | {case['seconds']:.2f}" for case in cases]
        print(f"| {mode} | {' | '.join(cells)} |", flush=True)
    kept = [given.images * (steps + 2) * 3 * 32 * 32 * 4 / 1e6 for steps in given.steps]
    print(f"| of which states | {' | '.join(f'{each:.1f} | ' for each in kept)} |")
    print("\n| EOT of 20 draws, 10 steps | s | MB |", "|---|---|---|", sep="\n")
    for mode, count in (("loop over draws", 1), ("one batch", 1), ("loop over draws", 4), ("one batch", 4)):
        case = _in_fresh_process({**shared, "mode": mode, "steps": 10, "draws": 20, "images": count})
        print(f"| {mode}, {count} images | {case['seconds']:.2f} | {case['megabytes']:.0f} |", flush=True)
    print("\n| purifying 100 images at t = 100 | s | accuracy |", "|---|---|---|", sep="\n")
    for sampler, steps in (("ddim", 10), ("ddpm", 10), ("ddpm", 100)):
        extra = {"sampler": sampler, "classifier": given.classifier, "data": given.data}
        case = _in_fresh_process({**shared, "steps": steps, **extra})
        left = "" if case["accuracy"] is None else f"{case['accuracy']:.0f}"
        print(f"| {steps} steps of {sampler.upper()} | {case['seconds']:.2f} | {left} |", flush=True)


def _in_fresh_process(case: dict) -> dict:
    command = [sys.executable, "-m", "experiments.bench.purify", "--case", json.dumps(case)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
