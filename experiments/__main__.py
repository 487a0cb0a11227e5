"""`python -m experiments fit --config experiments/configs/….yaml`: one Lightning run from one YAML file."""

from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LightningCLI


def main(arguments: Sequence[str] | None = None) -> None:
    """Run Lightning's command line; `arguments` default to the process's own."""
    torch.set_float32_matmul_precision("high")
    given = None if arguments is None else list(arguments)
    LightningCLI(save_config_kwargs={"overwrite": True}, seed_everything_default=0, args=given)


if __name__ == "__main__":
    main()
