"""What commands of this package have in common: mistakes of a user are one line."""

import argparse
import sys
from collections.abc import Callable

from diffusion.choice import pick_device

COUNTS = ("limit", "judged", "images", "clean", "private", "drawn", "batch", "epochs", "steps")
COUNTS += ("sampling_steps", "inversion_steps", "removal_steps", "reidentifier_epochs")
"""Options that are at least 1 wherever they are."""


def completed(command: str, run: Callable[[argparse.Namespace], object], given: argparse.Namespace) -> int:
    """Run a command, and return its exit code: 1 where what was asked for cannot be had, which is said."""
    try:
        for name in COUNTS:
            value = getattr(given, name, None)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is 1 or more; got {value}")
        if "device" in given:
            given.device = str(pick_device(given.device))
        run(given)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
