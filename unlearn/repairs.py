"""Repairs of a backdoored classifier from a few clean pictures, behind one call.

    repaired = repair(network, images, labels, method="fine-pruning")

The clean pictures must have been neither in the poisoned training set nor among those that are judged on. A
fifth of them is held out where a method has to choose how far to go: it then stops when accuracy on those has
fallen by `allowed`, and no attack is ever looked at.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import NonFiniteError
from unlearn.channels import ChannelMasks, Layer, layers_of, lipschitz, prune
from unlearn.triggers import Images, Labels

Repair = Callable[..., nn.Module]


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
        images: clean pictures; `clp` looks at none.
        labels: their classes.
        method: a name of `REPAIRS`.
        generator: of the order of pictures, and of what a method draws.
        settings: of the method, see its function.

    Raises:
        ValueError: an unknown method or setting, too few pictures, or a network without what it works on.
        NonFiniteError: a loss is not finite.
    """
    if method not in REPAIRS:
        raise ValueError(f"unknown repair {method!r}; available: {', '.join(REPAIRS)}")
    if len(images) != len(labels) or len(labels) < 10:
        raise ValueError(f"a repair needs ten clean pictures with labels; got {len(images)}, {len(labels)}")
    copied = copy.deepcopy(network).eval().requires_grad_(True)
    try:
        made = REPAIRS[method](copied, images, labels, generator=generator, **settings)
    except TypeError as error:
        raise ValueError(f"{method} cannot be run with {settings}: {error}") from error
    return made.eval().requires_grad_(False)


def fine_tune(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    epochs: int = 20,
    learning_rate: float = 0.01,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Train on the clean pictures, batch normalisation included: the control that is not clever.

    SGD with momentum 0.9 and weight decay 5e-4, whose rate falls by a cosine.
    """
    return _trained(
        network,
        lambda some, own: F.cross_entropy(network(some), own),
        images,
        labels,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        generator=generator,
    )


def fine_pruning(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    allowed: float = 0.1,
    step: float = 0.01,
    generator: torch.Generator | None = None,
    **tuning: Any,
) -> nn.Module:
    """Prune the channels of the last layer that clean pictures leave asleep, then fine-tune (Liu,
    Dolan-Gavitt and Garg, RAID 2018, arXiv 1805.12185).

    Channels go in steps of a share `step`, by their mean activation, until accuracy on held-out pictures has
    fallen by `allowed`.
    """
    learn, hold = _held_out(len(images), generator)
    layer = layers_of(network)[-1]
    asleep = _activation(network, layer, images[learn]).argsort()
    portions = [(layer, each) for each in _portions(asleep, step)]
    _prune_while(network, portions, images[hold], labels[hold], allowed)
    return fine_tune(network, images, labels, generator=generator, **tuning)


def attention_distillation(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    weights: Sequence[float] = (500.0, 1000.0, 1000.0),
    teacher_epochs: int = 10,
    epochs: int = 20,
    learning_rate: float = 0.01,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """NAD (Li et al., ICLR 2021, arXiv 2101.05930): a fine-tuned copy teaches where to look.

    Beside the labels, the squared activations of the last layer at each of the last resolutions, summed over
    channels and brought to length 1, follow the teacher's; `weights` are of these, from the earliest.
    """
    teacher = copy.deepcopy(network)
    tuning = {"learning_rate": learning_rate, "batch_size": batch_size, "generator": generator}
    fine_tune(teacher, images, labels, epochs=teacher_epochs, **tuning).eval().requires_grad_(False)
    names = _last_of_each_size(network, images[:1])[-len(weights) :]
    own, taught = (_Watch(each, names) for each in (network, teacher))

    def loss(some: Images, classes: Labels) -> Tensor:
        with own, taught:
            logits = network(some)
            with torch.no_grad():
                teacher(some)
        apart = [
            weight * (_attention(mine) - _attention(theirs)).square().mean()
            for weight, mine, theirs in zip(weights[-len(names) :], own.seen, taught.seen, strict=True)
        ]
        return F.cross_entropy(logits, classes) + torch.stack(apart).sum()

    return _trained(network, loss, images, labels, epochs=epochs, **tuning)


def neuron_pruning(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    eps: float = 0.4,
    alpha: float = 0.2,
    steps: int = 500,
    learning_rate: float = 0.2,
    batch_size: int = 128,
    allowed: float = 0.02,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """ANP (Wu and Wang, NeurIPS 2021, arXiv 2110.14430): prune channels that adversarial factors misuse.

    Masks in [0, 1] descend `alpha` times the clean loss and 1 - `alpha` times that under the worst relative
    perturbation of weights and biases within `eps`, found by one signed step. Channels are then pruned from
    the lowest mask on, until accuracy on held-out pictures has fallen by `allowed`; none above 0.9. The
    authors take 2,000 steps.
    """
    learn, hold = _held_out(len(images), generator)
    network.requires_grad_(False)
    masks = ChannelMasks(network)
    noise = [*masks.gains, *masks.shifts]
    descent = torch.optim.SGD(masks.masks.parameters(), lr=learning_rate, momentum=0.9)
    for _ in range(steps):
        order = torch.randint(len(learn), (min(batch_size, len(learn)),), generator=generator)
        some, own = images[learn[order]], labels[learn[order]]
        with masks.applied():
            for each in noise:
                each.data.zero_()
            clean = F.cross_entropy(network(some), own)
            ascent = torch.autograd.grad(clean, noise, retain_graph=True)
            for each, slope in zip(noise, ascent, strict=True):
                each.data.copy_(eps * slope.sign())
            worst = F.cross_entropy(network(some), own)
            loss = _finite(alpha * clean + (1 - alpha) * worst)
            descent.zero_grad()
            loss.backward(inputs=[*masks.masks])
        descent.step()
        for mask in masks.masks:
            mask.data.clamp_(0, 1)
    ranked = sorted(
        (float(value), number, channel)
        for number, mask in enumerate(masks.masks)
        for channel, value in enumerate(mask.detach())
    )
    singles = [
        (masks.layers[number], torch.tensor([channel])) for value, number, channel in ranked if value <= 0.9
    ]
    _prune_while(network, singles, images[hold], labels[hold], allowed)
    return network


def lipschitz_pruning(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    deviations: float = 3.0,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """CLP (Zheng et al., ECCV 2022, arXiv 2208.03111): prune channels that can amplify far more than their
    layer's others, by more than `deviations` standard deviations. It looks at no picture."""
    for layer in layers_of(network):
        bound = lipschitz(layer)
        prune(layer, bound > bound.mean() + deviations * bound.std(correction=0))
    return network


REPAIRS: dict[str, Repair] = {
    "fine-tuning": fine_tune,
    "fine-pruning": fine_pruning,
    "nad": attention_distillation,
    "anp": neuron_pruning,
    "clp": lipschitz_pruning,
}
"""Repairs by name."""


class _Watch:
    """What some modules of a network put out in the last forward pass."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self._modules = [network.get_submodule(name) for name in names]
        self.seen: list[Tensor] = []

    def __enter__(self) -> "_Watch":
        self.seen = []
        self._hooks = [
            each.register_forward_hook(lambda module, given, result: self.seen.append(result))
            for each in self._modules
        ]
        return self

    def __exit__(self, *reason: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.square().sum(1).flatten(1), dim=1)


@torch.no_grad()
def _last_of_each_size(network: nn.Module, images: Images) -> list[str]:
    """The names of the last normalisations before their maps get smaller, from the earliest."""
    layers = layers_of(network)
    with _Watch(network, [layer.name for layer in layers]) as watch:
        network(images)
    sizes = {maps.shape[-2:]: layer.name for layer, maps in zip(layers, watch.seen, strict=True)}
    return [*sizes.values()]


def _trained(
    network: nn.Module,
    loss: Callable[[Images, Labels], Tensor],
    images: Images,
    labels: Labels,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    generator: torch.Generator | None,
) -> nn.Module:
    descent = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4)
    per_epoch = -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, epochs * per_epoch)
    network.train()
    for _ in range(epochs):
        for some in torch.randperm(len(images), generator=generator).split(batch_size):
            if len(some) > 1:  # batch statistics of one picture have no variance
                value = _finite(loss(images[some], labels[some]))
                descent.zero_grad()
                value.backward()
                descent.step()
            schedule.step()
    return network.eval()


def _finite(loss: Tensor) -> Tensor:
    if not torch.isfinite(loss).all():
        raise NonFiniteError("the repair gave a loss or a gradient that is not finite: lower its rates")
    return loss


def _held_out(count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Numbers of the pictures to learn from, and of a fifth to choose by."""
    order = torch.randperm(count, generator=generator)
    return order[count // 5 :], order[: count // 5]


def _portions(order: Tensor, step: float) -> list[Tensor]:
    return list(order.split(max(1, round(step * len(order)))))


@torch.no_grad()
def _activation(network: nn.Module, layer: Layer, images: Images, batch_size: int = 250) -> Tensor:
    """The mean of each channel behind the layer, where it is positive."""
    means = []
    for some in images.split(batch_size):
        with _Watch(network, [layer.name]) as watch:
            network(some)
        means.append(watch.seen[0].clamp_min(0).mean((0, 2, 3)))
    return torch.stack(means).mean(0)


@torch.no_grad()
def _accuracy(network: nn.Module, images: Images, labels: Labels, batch_size: int = 250) -> float:
    network.eval()
    right = [
        (network(some).argmax(1) == own).float()
        for some, own in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    ]
    return float(torch.cat(right).mean())


@torch.no_grad()
def _prune_while(
    network: nn.Module,
    portions: Sequence[tuple[Layer, Tensor]],
    images: Images,
    labels: Labels,
    allowed: float,
) -> None:
    """Prune portion after portion, and take the one back with which too much accuracy is lost."""
    least = _accuracy(network, images, labels) - allowed
    for layer, channels in portions:
        before = layer.norm.weight[channels].clone(), layer.norm.bias[channels].clone()
        prune(layer, channels)
        if _accuracy(network, images, labels) < least:
            layer.norm.weight[channels], layer.norm.bias[channels] = before
            return
