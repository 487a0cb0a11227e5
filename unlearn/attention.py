"""NAD: a repair that a fine-tuned copy teaches."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearn.channels import layers_of
from unlearn.triggers import Images, Labels
from unlearn.tuning import Watch, fine_tune, trained


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
    own, taught = (Watch(each, names) for each in (network, teacher))

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

    return trained(network, loss, images, labels, epochs=epochs, **tuning)


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.square().sum(1).flatten(1), dim=1)


@torch.no_grad()
def _last_of_each_size(network: nn.Module, images: Images) -> list[str]:
    """The names of the last normalisations before their maps get smaller, from the earliest."""
    layers = layers_of(network)
    with Watch(network, [layer.name for layer in layers]) as watch:
        network(images)
    sizes = {maps.shape[-2:]: layer.name for layer, maps in zip(layers, watch.seen, strict=True)}
    return [*sizes.values()]
