"""Repairs that silence channels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearn.channels import ChannelMasks, Layer, layers_of, lipschitz, prune, silent
from unlearn.triggers import Images, Labels
from unlearn.tuning import Watch, accuracy, fine_tune, finite, held_out


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
    learn, hold = held_out(len(images), generator)
    layer = layers_of(network)[-1]
    asleep = _activation(network, layer, images[learn]).argsort()
    portions = [(layer, each) for each in _portions(asleep, step)]
    _prune_while(network, portions, images[hold], labels[hold], allowed)
    with silent(layer):
        return fine_tune(network, images, labels, generator=generator, **tuning)


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
    the lowest mask on, none above 0.9: as many as cost no more accuracy than `allowed` on the same pictures,
    which so few factors hardly learn by heart, and of which a fifth could not tell two per cent. The authors
    take 2,000 steps.
    """
    network.requires_grad_(False)
    masks = ChannelMasks(network)
    noise = [*masks.gains, *masks.shifts]
    descent = torch.optim.SGD(masks.masks.parameters(), lr=learning_rate, momentum=0.9)
    for _ in range(steps):
        order = torch.randint(len(images), (min(batch_size, len(images)),), generator=generator)
        some, own = images[order], labels[order]
        with masks.applied():
            for each in noise:
                each.data.zero_()
            clean = F.cross_entropy(network(some), own)
            ascent = torch.autograd.grad(clean, noise, retain_graph=True)
            for each, slope in zip(noise, ascent, strict=True):
                each.data.copy_(eps * slope.sign())
            worst = F.cross_entropy(network(some), own)
            loss = finite(alpha * clean + (1 - alpha) * worst)
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
    _prune_while(network, singles, images, labels, allowed)
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


def _portions(order: Tensor, step: float) -> list[Tensor]:
    return list(order.split(max(1, round(step * len(order)))))


@torch.no_grad()
def _activation(network: nn.Module, layer: Layer, images: Images, batch_size: int = 250) -> Tensor:
    """The mean of each channel behind the layer, where it is positive."""
    means = []
    for some in images.split(batch_size):
        with Watch(network, [layer.name]) as watch:
            network(some)
        means.append(watch.seen[0].clamp_min(0).mean((0, 2, 3)))
    return torch.stack(means).mean(0)


@torch.no_grad()
def _prune_while(
    network: nn.Module,
    portions: Sequence[tuple[Layer, Tensor]],
    images: Images,
    labels: Labels,
    allowed: float,
) -> None:
    """Prune the most portions, from the first on, that cost no more accuracy than `allowed`.

    Accuracy may come back with a later portion, so that pruning goes on until twice as much is lost.
    """
    before = accuracy(network, images, labels)
    gone: list[tuple[Layer, Tensor, Tensor, Tensor]] = []
    kept = 0
    for layer, channels in portions:
        norm = layer.norm
        gone.append((layer, channels, norm.weight[channels].clone(), norm.bias[channels].clone()))
        prune(layer, channels)
        lost = before - accuracy(network, images, labels)
        if lost <= allowed:
            kept = len(gone)
        elif lost > 2 * allowed:
            break
    for layer, channels, weight, bias in gone[kept:]:
        layer.norm.weight[channels], layer.norm.bias[channels] = weight, bias
