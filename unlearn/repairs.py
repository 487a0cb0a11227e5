"""Repairs of a backdoored classifier from a few clean pictures, behind one call.

    repaired = repair(network, images, labels, method="fine-pruning")

The clean pictures must have been neither in the poisoned training set nor among those that are judged on.
Where a method has to choose how far to go, it stops when accuracy has fallen by `allowed`, on a fifth of them
that it has not learned from, or, for `anp`, on all of them. No attack is ever looked at.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from attacks import NonFiniteError
from unlearn.attention import attention_distillation
from unlearn.inversion import cleansed
from unlearn.poisoned import anti_backdoor
from unlearn.pruning import fine_pruning, lipschitz_pruning, neuron_pruning
from unlearn.triggers import Images, Labels
from unlearn.tuning import classes_of, fine_tune, refreshed
from unlearn.universal import universal_unlearning

Repair = Callable[..., nn.Module]


REPAIRS: dict[str, Repair] = {
    "statistics": refreshed,
    "fine-tuning": fine_tune,
    "fine-pruning": fine_pruning,
    "nad": attention_distillation,
    "anp": neuron_pruning,
    "clp": lipschitz_pruning,
    "i-bau": universal_unlearning,
    "neural-cleanse": cleansed,
    "abl": anti_backdoor,
}
"""Repairs by name."""


def repair(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    method: str = "fine-pruning",
    generator: torch.Generator | None = None,
    **settings: Any,
) -> nn.Module:
    """Return a repaired copy of a classifier, in evaluation mode; the given one stays as it is.

    Args:
        network: classifier of images in [0, 1] that returns logits.
        images: clean pictures; `clp` looks at none, and `abl` wants the poisoned training set.
        labels: their classes.
        method: a name of `REPAIRS`.
        generator: of the order of pictures, and of what a method draws.
        settings: of the method, see its function.

    Raises:
        ValueError: an unknown method or setting, too few pictures, or a network without what it works on.
        NonFiniteError: a loss or a weight of the result is not finite.
    """
    if method not in REPAIRS:
        raise ValueError(f"unknown repair {method!r}; available: {', '.join(REPAIRS)}")
    if len(images) != len(labels) or len(labels) < 10:
        raise ValueError(f"a repair needs ten clean pictures with labels; got {len(images)}, {len(labels)}")
    copied = copy.deepcopy(network).eval().requires_grad_(True)
    lowest, highest, classes = int(labels.min()), int(labels.max()), classes_of(copied, images)
    if not 0 <= lowest <= highest < classes:
        raise ValueError(
            f"labels go from {lowest} to {highest}, and the network has classes 0 to {classes - 1}"
        )
    try:
        made = REPAIRS[method](copied, images, labels.long(), generator=generator, **settings)
    except TypeError as error:
        raise ValueError(f"{method} cannot be run with {settings}: {error}") from error
    if not all(weight.isfinite().all() for weight in made.parameters()):
        raise NonFiniteError(f"{method} left weights that are not finite, or found them")
    return made.eval().requires_grad_(False)
