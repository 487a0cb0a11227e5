"""How far a training is, for whoever waits for it."""

import sys

from diffusion.finetune import Progress
from diffusion.losses import Losses


def mean_every(count: int, what: str = "") -> Progress:
    """Return a callback that says the mean loss of every `count` steps, of `what`."""
    window: list[float] = []

    def tell(step: int, losses: Losses) -> None:
        window.append(float(losses.mean()))
        if len(window) == count:
            print(f"{what}step {step + 1}: loss {sum(window) / count:.4f}", file=sys.stderr, flush=True)
            window.clear()

    return tell
