"""Take one network out of a dynamic classifier.

    python -m experiments.subnetwork runs/proard.safetensors small.safetensors --data DATA \\
        --shape w0.65-d0_1_2_0-e0.2_0.25_0.35_0.2

`--shape` names width, further blocks of each stage and ratio of each stage's bottlenecks, as
`distill.dynamic.Shape` writes them. Its batch normalisation gets the statistics of training pictures, without
which no network of many is fit for use; what is written is a classifier like any other.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from distill.classifier import Classifier, load, recalibrated
from distill.dynamic import DynamicResNet, Shape
from distill.images import labelled, to_unit


def extracted(classifier: Classifier, shape: Shape, images: torch.Tensor, *, batch: int = 128) -> Classifier:
    """Return a network of a dynamic classifier by itself, with the statistics of `images` in [0, 1].

    Raises ValueError for a classifier that holds but one network.
    """
    network = classifier.network
    if not isinstance(network, DynamicResNet):
        raise ValueError(f"{classifier.config['architecture']} is no network of many")
    network.choose(shape)
    recalibrated(classifier, images.split(batch))
    config: dict[str, Any] = {**classifier.config, "architecture": f"dynamic-{network.base}:{shape}"}
    made = Classifier(**config)
    made.network.load_state_dict(network.extract().state_dict())
    network.choose()
    return made.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.subnetwork", description=__doc__.split("\n")[0])
    parser.add_argument("classifier", help="safetensors of a dynamic classifier")
    parser.add_argument("out", help="safetensors to write")
    parser.add_argument("--shape", required=True, help="such as w0.8-d0_1_2_0-e0.2_0.25_0.35_0.2")
    parser.add_argument("--data", required=True, help="folder or npz file, see distill.images.labelled")
    parser.add_argument("--images", type=int, default=2000, help="training pictures for the statistics")
    given = parser.parse_args(arguments)
    try:
        pictures = labelled(given.data, train=True)
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
        images = to_unit(pictures.pixels[order[: given.images]])
        made = extracted(load(given.classifier), Shape.parse(given.shape), images)
        made.save(given.out)
    except (ValueError, OSError) as error:
        print(f"subnetwork: {error}", file=sys.stderr)
        return 1
    count = sum(each.numel() for each in made.parameters())
    print(f"{given.out}: {count / 1e6:.2f} million parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
