"""What an attacker of a classifier maximises: functions of logits and labels, one value per image."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Logits = Float[Tensor, "batch classes"]
Labels = Int[Tensor, " batch"]
Losses = Float[Tensor, " batch"]
Loss = Callable[[Logits, Labels], Losses]


def cross_entropy(logits: Logits, labels: Labels) -> Losses:
    """The cross-entropy at the labels."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Logits, labels: Labels) -> Losses:
    """The best wrong logit minus the right one, positive when fooled (Carlini and Wagner, 2017, arXiv
    1608.04644)."""
    right = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - right


def dlr(logits: Logits, labels: Labels) -> Losses:
    """The margin over the gap between first and third logit (Croce and Hein, 2020, arXiv 2003.01690, eq. 6):
    it does not vanish when logits are scaled.

    Raises ValueError for fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"DLR needs at least 3 classes; got {logits.shape[1]}: use the margin")
    ordered = logits.sort(1, descending=True).values
    return margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_dlr(logits: Logits, labels: Labels, targets: Labels) -> Losses:
    """The targeted form (Croce and Hein, 2020, eq. 7): the target's logit against the label's.

    Raises ValueError for fewer than four classes.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"targeted DLR needs at least 4 classes; got {logits.shape[1]}: use the margin")
    ordered = logits.sort(1, descending=True).values
    right, wanted = (logits.gather(1, which[:, None]).squeeze(1) for which in (labels, targets))
    return (wanted - right) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)
