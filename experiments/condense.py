"""A few pictures of each class that stand for a training set, recovered from a network.

    python -m experiments.condense squeezed.safetensors distilled.npz --per-class 10

reads what `experiments.distillation` wrote, of a student that `guard_cifar10.yaml` has trained (GUARD) or
`natural_cifar10.yaml` (SRe2L), and writes an npz that the other configurations take as `--data.root`;
`soft_labels_cifar10.yaml` trains on it. Pictures of all classes are recovered in batches of `--batch`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from attacks import NonFiniteError
from distill.classifier import load
from distill.condense import recover
from distill.images import check_npz, write_npz


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.condense", description=__doc__.split("\n")[0])
    parser.add_argument("classifier", help="safetensors with batch normalisation")
    parser.add_argument("out", type=Path, help="npz to write")
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--statistics", type=float, default=0.01, help="weight of the statistics")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except (ValueError, OSError, NonFiniteError) as error:
        print(f"condense: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace) -> None:
    network = load(given.classifier).to(given.device)
    check_npz(given.out)
    if given.per_class < 1:
        raise ValueError(f"a class has one picture or more; got {given.per_class}")
    classes = network.config["classes"]
    labels = torch.arange(classes * given.per_class, device=given.device) % classes
    generator = torch.Generator().manual_seed(given.seed)
    images = [
        recover(
            network,
            some,
            side=given.side,
            steps=given.steps,
            statistics=given.statistics,
            generator=generator,
            callback=_tell,
        )
        for some in labels.split(given.batch)
    ]
    write_npz(given.out, (torch.cat(images) * 255).round().to(torch.uint8), labels)
    taken = torch.cat([network(some).argmax(1) for some in torch.cat(images).split(given.batch)])
    right = float((taken == labels).float().mean())
    print(f"\n{len(labels)} pictures, of which the network takes {100 * right:.0f} % for their class")


def _tell(step: int, loss: float) -> None:
    if step % 50 == 0 and sys.stderr.isatty():
        print(f"\r{step} {loss:.3f}\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
