"""`python -m experiments fit --config experiments/configs/….yaml`: one Lightning run from one YAML file.

`python -m experiments evaluate …` judges a defence, see `experiments.evaluate`;
`python -m experiments protect-benchmark …` protections, see `experiments.protect_benchmark`;
`python -m experiments personalisation …` what a thief learns, see `experiments.personalisation`;
`python -m experiments audit …` whether a set of pictures can be told apart without looking, see
`experiments.audit`;
`python -m experiments robustness …` classifiers under the attacks that distillation papers report, see
`experiments.robustness`;
`python -m experiments fit-detector …` detectors that need no Lightning, see `experiments.fit_detector`;
`python -m experiments repair …` backdoored classifiers, see `experiments.repair`;
`python -m experiments variations …` clean classifiers from poisoned sets, see `experiments.variations`;
`python -m experiments amplification …` what a diffusion model makes of a poisoned set, see
`experiments.amplification`;
`python -m experiments privacy …` a model that learns from another without its memories, see
`experiments.privacy`;
`python -m experiments forget …` a class that a diffusion model forgets, see `experiments.forget`;
`python -m experiments plant …` text-to-image models with a backdoor, see `experiments.plant`;
`python -m experiments noise-backdoor …` pixel models with a trigger in the noise, see
`experiments.noise_backdoor`;
`python -m experiments detection-table …` detectors beside each other, see `experiments.detection_table`.
"""

import importlib
import sys
from collections.abc import Sequence

import torch

from experiments.cli import train

COMMANDS = (
    "evaluate",
    "protect-benchmark",
    "personalisation",
    "audit",
    "robustness",
    "detection-table",
    "fit-detector",
    "repair",
    "plant",
    "noise-backdoor",
    "variations",
    "amplification",
    "privacy",
    "forget",
)
"""Modules of this package that are no training, by their names with hyphens."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` default to the process's own."""
    torch.set_float32_matmul_precision("high")
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in COMMANDS:
        module = importlib.import_module(f"experiments.{given[0].replace('-', '_')}")
        sys.exit(module.main(given[1:]))
    train(given)


if __name__ == "__main__":
    main()
