"""Write a trained student, and take teachers from RobustBench.

    python -m experiments.distillation runs/ard_cifar10/best.ckpt student.safetensors [--half]

writes the weights that were validated, the averaged ones if there are any, with what it takes to build the
network again: `distill.classifier.load` reads it, and so do `--classifier` of the evaluations and the
teachers of other configurations. `--half` rounds them to float16.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from distill.classifier import Classifier, Frozen
from experiments.robustbench import load_model


class Zoo(Frozen):
    """A teacher of RobustBench's zoo by its name.

    Raises FileNotFoundError, naming file and folder, when its weights are absent and cannot be fetched, and
    ValueError for a name that the zoo does not have.
    """

    def __init__(self, name: str, model_dir: str = "models", dataset: str = "cifar10") -> None:
        super().__init__(load_model(name, model_dir=model_dir, dataset=dataset))


def export(checkpoint: str, out: str, *, half: bool = False) -> Classifier:
    """Write the student of a checkpoint as safetensors, rounded to float16 if `half`, and return it.

    Raises ValueError for a checkpoint whose student is not one of `distill.networks`.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if "classifier" not in saved:
        raise ValueError(f"{checkpoint} does not say which network it holds: its student is not a Classifier")
    student, weights = Classifier(**saved["classifier"]), saved["state_dict"]
    part = "average.network." if any(name.startswith("average.") for name in weights) else "student."
    student.load_state_dict(
        {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}
    )
    student.save(out, half=half)
    return student.eval()


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.distillation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint")
    parser.add_argument("out", help="safetensors")
    parser.add_argument("--half", action="store_true", help="round the weights to float16")
    given = parser.parse_args(words)
    try:
        export(given.checkpoint, given.out, half=given.half)
    except (ValueError, OSError) as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
