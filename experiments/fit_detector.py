"""Fit a detector that needs no Lightning to folders of pictures: linear ones, and those that learn nothing.

    python -m experiments fit-detector clip FOLDER my-detector/ --set model=openai/clip-vit-large-patch14
    python -m experiments fit-detector reconstruction FOLDER my-detector/ --set 'models=["taesd"]'

The set is audited first; the detector learns from one part, is calibrated on another and judged on a third,
as in `experiments.detection`, and lies in the folder, with `audit.json` and `judged.json`. Any kind will do;
networks are trained as `DetectorEstimator` trains them, in memory and without a log.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detect.detector import DETECTORS, create
from detect.equalise import LEVELS
from experiments.detection import finish
from experiments.detection_data import DetectionPictures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser("python -m experiments fit-detector", description=about)
    parser.add_argument("kind", choices=DETECTORS)
    parser.add_argument("data", help="folder of a layout that detect.layouts reads")
    parser.add_argument("out", type=Path, help="folder of the detector")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings, JSON or text")
    parser.add_argument("--level", choices=LEVELS, default="codec-equalised")
    parser.add_argument("--side", type=int, default=256, help="of pictures after codec+size-equalised")
    parser.add_argument("--held-out", type=float, default=0.25)
    parser.add_argument("--judged", type=float, default=0.3)
    parser.add_argument("--limit", type=int, help="pictures to learn from")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        print(_run(given))
    except (ValueError, OSError) as error:
        print(f"fit-detector: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace) -> str:
    torch.manual_seed(given.seed)
    detector = create(given.kind, **dict(map(_setting, given.set)))
    pictures = DetectionPictures(
        given.data,
        level=given.level,
        side=given.side,
        held_out=given.held_out,
        judged=given.judged,
        limit=given.limit,
    )
    pictures.setup("fit")
    if detector.learns:
        generator = torch.Generator().manual_seed(given.seed)
        detector.learn(pictures.learn.images(), pictures.learn.labels, generator=generator)
    return finish(detector, pictures, given.out)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"expected NAME=VALUE; got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
