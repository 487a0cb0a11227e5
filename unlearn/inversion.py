"""Neural Cleanse: the smallest trigger that turns every picture into a class, and whether one stands out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from unlearn.triggers import Images, Labels
from unlearn.tuning import classes_of, evaluated, fine_tune, finite


@dataclass(frozen=True, eq=False)
class Inverted:
    """A trigger that was found for a class: a trigger like those of `unlearn.triggers`."""

    target: int
    mask: Float[Tensor, "1 height width"]
    """How much of each pixel it replaces, in [0, 1]."""
    pattern: Float[Tensor, "channels height width"]
    success: float
    """Share of a batch that it turns into the class."""

    @property
    def size(self) -> float:
        """The sum of the mask: how many pixels it replaces."""
        return float(self.mask.sum())

    def __call__(self, images: Images) -> Images:
        return torch.lerp(images, self.pattern.to(images), self.mask.to(images))


@dataclass(frozen=True, eq=False)
class Scanned:
    """What was found for each class."""

    triggers: list[Inverted]

    @property
    def anomalies(self) -> list[float]:
        """How many deviations each class's trigger is smaller than the median; negative for larger ones.

        The deviation is 1.4826 times the median distance from the median.
        """
        sizes = torch.tensor([each.size for each in self.triggers])
        apart = (sizes.median() - sizes) / (1.4826 * (sizes - sizes.median()).abs().median()).clamp_min(1e-9)
        return apart.tolist()

    @property
    def suspects(self) -> list[Inverted]:
        """Triggers that are smaller by more than two deviations: the authors' bound."""
        return [each for each, apart in zip(self.triggers, self.anomalies, strict=True) if apart > 2]


def scan(network: nn.Module, images: Images, *, classes: int | None = None, **settings: Any) -> Scanned:
    """Invert a trigger for every class (Wang et al., IEEE S&P 2019); `settings` are those of `invert`.

    It needs some classes more than the backdoor has, as the median must be an innocent one, and it knows
    patches best: a trigger over the whole picture, or a warp, has no small mask.

    Raises ValueError for fewer than three classes.
    """
    count = classes or classes_of(network, images)
    if count < 3:
        raise ValueError(f"no class can stand out among {count}: a scan needs three or more")
    return Scanned([invert(network, images, target, **settings) for target in range(count)])


def invert(
    network: nn.Module,
    images: Images,
    target: int,
    *,
    steps: int = 500,
    learning_rate: float = 0.1,
    cost: float = 1e-3,
    success: float = 0.99,
    patience: int = 5,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> Inverted:
    """Return the trigger with the smallest mask that turns a share `success` of pictures into a class.

    Mask and pattern, through sigmoids, descend the cross-entropy to the class plus a price times the sum of
    the mask. The price grows by half after `patience` steps in a row that turn enough of a batch, and falls
    by more after as many that do not; the authors double it. The smallest mask that turned enough of its
    batch, and those before it of theirs, is kept; where none did, the last one.

    Args:
        network: classifier of images in [0, 1]; it is evaluated, and its weights get no gradient.
        images: clean pictures of all classes.
        target: the class.
        steps: of Adam, with betas 0.5 and 0.9.
        learning_rate: of both.
        cost: the price at first.
        success: enough.
        patience: see above.
        batch_size: pictures per step.
        generator: of the mask, the pattern and the batches.

    Raises NonFiniteError for a network whose loss is not finite.
    """
    shape = images.shape[1:]
    start = torch.randn((shape[0] + 1, *shape[1:]), generator=generator).to(images)
    free = [start[:1].clone().requires_grad_(), start[1:].clone().requires_grad_()]
    adam = torch.optim.Adam(free, lr=learning_rate, betas=(0.5, 0.9))
    price, enough, short, streak, best = cost, 0, 0, 0, None
    aim = torch.full((min(batch_size, len(images)),), target, device=images.device)
    with evaluated(network):
        for _ in range(steps):
            some = images[torch.randint(len(images), (len(aim),), generator=generator)]
            mask, pattern = (each.sigmoid() for each in free)
            logits = network(torch.lerp(some, pattern, mask))
            loss = finite(F.cross_entropy(logits, aim) + price * mask.sum())
            for each, slope in zip(free, torch.autograd.grad(loss, free), strict=True):
                each.grad = slope
            turned = float((logits.argmax(1) == target).float().mean())
            streak = streak + 1 if turned >= success else 0
            if streak >= patience and (best is None or float(mask.detach().sum()) < best.size):
                best = Inverted(target, mask.detach(), pattern.detach(), turned)
            enough, short = (enough + 1, 0) if turned >= success else (0, short + 1)
            if enough >= patience:
                price, enough = price * 1.5, 0
            elif short >= patience:
                price, short = price / 1.5**1.5, 0
            adam.step()
    return best or Inverted(target, mask.detach(), pattern.detach(), turned)


def cleansed(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    triggers: Sequence[Inverted] | None = None,
    share: float = 0.2,
    epochs: int = 5,
    learning_rate: float = 0.01,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> nn.Module:
    """Train on clean pictures of which a `share` carries an inverted trigger, with their true labels.

    The triggers are the suspects of a `scan` with `settings`, or where it suspects none, the smallest.
    """
    network.requires_grad_(False)
    if triggers is None:
        found = scan(network, images, generator=generator, **settings)
        triggers = found.suspects or [min(found.triggers, key=lambda each: each.size)]
    chosen = torch.randperm(len(images), generator=generator)[: round(share * len(images))]
    marked = images.clone()
    for number, trigger in enumerate(triggers):
        own = chosen[number :: len(triggers)]
        marked[own] = trigger(images[own])
    network.requires_grad_(True)
    return fine_tune(
        network,
        marked,
        labels,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        generator=generator,
    )
