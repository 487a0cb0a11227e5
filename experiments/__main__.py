"""`python -m experiments fit --config experiments/configs/….yaml`: one Lightning run from one YAML file.

`python -m experiments evaluate …` judges a defence, see `experiments.evaluate`;
`python -m experiments protect-benchmark …` protections, see `experiments.protect_benchmark`;
`python -m experiments personalisation …` what a thief learns, see `experiments.personalisation`;
`python -m experiments audit …` whether a set of pictures can be told apart without looking, see
`experiments.audit`;
`python -m experiments robustness …` classifiers under the attacks that distillation papers report, see
`experiments.robustness`.
"""

import sys
from collections.abc import Sequence

import torch

from experiments.cli import train


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` default to the process's own."""
    torch.set_float32_matmul_precision("high")
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["evaluate"]:
        from experiments.evaluate import main as evaluate

        sys.exit(evaluate(given[1:]))
    if given[:1] == ["protect-benchmark"]:
        from experiments.protect_benchmark import main as benchmark

        sys.exit(benchmark(given[1:]))
    if given[:1] == ["personalisation"]:
        from experiments.personalisation import main as personalisation

        sys.exit(personalisation(given[1:]))
    if given[:1] == ["audit"]:
        from experiments.audit import main as audit

        sys.exit(audit(given[1:]))
    if given[:1] == ["robustness"]:
        from experiments.robustness import main as robustness

        sys.exit(robustness(given[1:]))
    train(given)


if __name__ == "__main__":
    main()
