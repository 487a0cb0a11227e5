"""Milliseconds per picture of detectors that look through a diffusion model.

`python -m experiments.bench.detect` prints one Markdown row for each detector: `dire` calls the model forty
times, `distildire` once, `cnndetection` never; the network behind it is the same. All look at the same
pictures, in turn, in one process; the best of the repeats counts. Quote ratios of one run.

    --model cifar10 --side 32 --batch 32 --repeats 3 --device cpu
"""

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from detect.detector import Detector, create

SMALL = {"blocks": (1, 1, 1, 1), "width": 24, "bottleneck": False, "small": True}
DETECTORS = ("dire", "distildire", "cnndetection")


def seconds(detector: Detector, images: torch.Tensor, repeats: int) -> float:
    """Return the least time of `repeats` for scoring images as one batch, after one warm-up."""
    detector.scores(images[:1], batch_size=len(images))
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        detector.scores(images, batch_size=len(images))
        taken.append(time.perf_counter() - started)
    return min(taken)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser("python -m experiments.bench.detect", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--resnet50", action="store_true", help="in the place of a narrow network")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    network = {} if given.resnet50 else SMALL
    images = torch.rand(given.batch, 3, given.side, given.side, device=given.device)
    print(f"| detector | one picture ms | of {given.batch} at once, each ms | dire takes, one | at once |")
    print("|---|---|---|---|---|")
    first: tuple[float, float] | None = None
    for name in DETECTORS:
        looks_through = {} if name == "cnndetection" else {"model": given.model}
        detector = create(name, network=network, **looks_through).to(given.device).eval()
        one = seconds(detector, images[:1], given.repeats)
        many = seconds(detector, images, given.repeats) / given.batch
        first = first or (one, many)
        ratios = f"{first[0] / one:.1f}x | {first[1] / many:.1f}x"
        print(f"| {name} | {1000 * one:.1f} | {1000 * many:.1f} | {ratios} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
