"""What a backdoor does to a classifier, and what a repair has cost."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from attacks import NonFiniteError
from attacks.rates import wilson
from unlearn.triggers import Images, Labels, Trigger
from unlearn.tuning import classes_of, evaluated


@dataclass(frozen=True)
class Rate:
    """A share in [0, 1] with its 95 % interval."""

    share: float
    low: float
    high: float
    of: int
    """Pictures that were asked about."""

    @classmethod
    def of_hits(cls, hits: Bool[Tensor, " n"]) -> Self:
        """Return the share of hits."""
        count = int(hits.sum())
        return cls(count / len(hits), *wilson(count, len(hits)), len(hits))

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Measures:
    """A classifier on clean and on marked pictures."""

    clean: Rate
    """Clean pictures that are taken for what they are."""
    attack: Rate
    """Of marked pictures that are not of the target class, those that are taken for it."""
    robust: Rate
    """Of the same pictures, those that are taken for what they are. Low success with low robust accuracy is
    destruction and no repair."""


@torch.no_grad()
def measure(
    network: nn.Module,
    images: Images,
    labels: Labels,
    trigger: Trigger,
    *,
    target: int,
    batch_size: int = 250,
) -> Measures:
    """Return the measures of a classifier of images in [0, 1].

    Raises:
        ValueError: every picture is of the target class, or the classifier has no such class.
        NonFiniteError: an answer is no number.
    """
    others = labels != target
    if not others.any():
        raise ValueError(f"every picture is of the target class {target}: there is none to mark")
    classes = classes_of(network, images)
    if not 0 <= target < classes:
        raise ValueError(f"the target class {target} is none of the classifier's {classes}")
    with evaluated(network):
        clean = answers(network, images, batch_size)
        marked = answers(network, trigger(images[others]), batch_size)
    attack, robust = Rate.of_hits(marked == target), Rate.of_hits(marked == labels[others])
    return Measures(Rate.of_hits(clean == labels), attack, robust)


def defence_effectiveness(before: Measures, after: Measures) -> float:
    """Return the defence effectiveness rating, in [0, 1]: 1 for a sure backdoor that is gone at no cost, 0.5
    for nothing done."""
    gained = max(0.0, before.attack.share - after.attack.share)
    lost = max(0.0, before.clean.share - after.clean.share)
    return (gained - lost + 1) / 2


@torch.no_grad()
def answers(network: nn.Module, images: Images, batch_size: int = 250) -> Labels:
    """Return what a classifier takes each picture for. Raises NonFiniteError if an answer is no number."""
    logits = torch.cat([network(some) for some in images.split(batch_size)])
    if logits.isnan().any():
        raise NonFiniteError("the classifier's answers are no numbers: its weights are damaged")
    return logits.argmax(1)
