"""Doubts about a robustness figure, each with a remedy: what to look at before it is believed."""

from collections.abc import Sequence

import torch
from torch import nn

from attacks.adaptive.expected import Randomised, with_seeds
from attacks.ball import Images
from attacks.evaluate import NULL, Row
from attacks.losses import Labels, cross_entropy, margin
from attacks.objectives import value_and_gradient

WEAKER_FIRST = (
    ("transfer", "exact"),
    ("square", "exact"),
    ("bpda", "exact"),
    ("surrogate", "exact"),
    ("exact", "apgd-eot"),
)
"""Pairs of attacks: the first cannot honestly beat the second."""


def model_doubts(model: nn.Module | Randomised, images: Images, labels: Labels) -> list[str]:
    """Return what a few forward and backward passes say against taking figures of `model` at their word."""
    decide, doubts, count = with_seeds(model), [], len(images)
    dealt = torch.arange(count)
    with torch.no_grad():
        first, second = decide(images, dealt), decide(images, dealt + count)
    if not torch.equal(first, second):
        doubts.append(
            "the classifier is randomised: attack the mean over 20 draws or more (Expected) and report the "
            "null row; AutoAttack's standard version is not valid here"
        )
    if first.min() >= 0 and torch.allclose(first.sum(1), torch.ones(count).to(first), atol=1e-4):
        doubts.append("the classifier returns probabilities: attack its logits, which do not saturate")
    if isinstance(model, nn.Module) and any(map(_in_training, model.modules())):
        doubts.append("dropout or batch normalisation is in training mode: call model.eval()")
    for loss in (cross_entropy, margin):
        try:
            _, gradient = value_and_gradient(lambda x, loss=loss: loss(decide(x, dealt), labels), images)
        except ValueError as error:
            return [*doubts, str(error)]
        zero = float((gradient == 0).flatten(1).all(1).float().mean())
        if zero > 0.1:
            name = loss.__name__.replace("_", " ")
            doubts.append(
                f"the gradient of the {name} is zero for {100 * zero:.0f} % of images: masked or saturated; "
                "attack the margin, or through a substitute"
            )
    return doubts


def _in_training(module: nn.Module) -> bool:
    kinds = nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd
    return module.training and isinstance(module, kinds)


def row_doubts(rows: Sequence[Row]) -> list[str]:
    """Return orders between attacks that an honest evaluation does not show, beyond two standard errors."""
    by_name, doubts = {row.attack: row for row in rows}, []
    if NULL not in by_name:
        return ["there is no null row: what an attack takes away cannot be told from luck"]
    null = by_name[NULL]
    doubts += [
        f"accuracy under {row.attack} is above that under no attack: it runs the wrong way"
        for row in rows
        if row.average > null.average + _twice(row, null)
    ]
    for weaker, stronger in WEAKER_FIRST:
        if weaker in by_name and stronger in by_name:
            one, other = by_name[weaker], by_name[stronger]
            if one.average < other.average - _twice(one, other):
                doubts.append(
                    f"{weaker} ({100 * one.average:.1f} %) beats {stronger} ({100 * other.average:.1f} %): "
                    f"{stronger} is broken or stopped too early"
                )
    return doubts


def _twice(one: Row, other: Row) -> float:
    """Two standard errors of a difference, the figures' half-widths being 1.96 of one."""
    return 2 / 1.96 * (one.half_widths[0] ** 2 + other.half_widths[0] ** 2) ** 0.5
