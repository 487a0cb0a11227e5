"""Training on a few pictures, and looking inside a network: what repairs have in common."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import NonFiniteError
from unlearn.triggers import Images, Labels


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
    return trained(
        network,
        lambda some, own: F.cross_entropy(network(some), own),
        images,
        labels,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        generator=generator,
    )


@torch.no_grad()
def refreshed(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Take the running statistics of batch normalisation anew, from clean pictures, and train nothing: the
    control that says how much of a repair they are.

    Raises ValueError for a network without such statistics.
    """
    norms = [each for each in network.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    norms = [each for each in norms if each.track_running_stats]
    if not norms:
        raise ValueError("the network has no batch normalisation whose statistics could be taken anew")
    momenta = [each.momentum for each in norms]
    network.eval()
    for each in norms:
        each.reset_running_stats()
        each.momentum = None  # the mean over batches
        each.train()
    for some in torch.randperm(len(images), generator=generator).split(batch_size):
        if len(some) > 1:  # batch statistics of one picture have no variance
            network(images[some])
    for each, momentum in zip(norms, momenta, strict=True):
        each.momentum = momentum
    return network.eval()


def trained(
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
    """Return the network after `epochs` of SGD on a loss of pictures and their classes, as `fine_tune`."""
    descent = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4)
    per_epoch = -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, epochs * per_epoch)
    network.train()
    for _ in range(epochs):
        for some in torch.randperm(len(images), generator=generator).split(batch_size):
            if len(some) > 1:  # batch statistics of one picture have no variance
                value = finite(loss(images[some], labels[some]))
                descent.zero_grad()
                value.backward()
                descent.step()
            schedule.step()
    return network.eval()


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """Have a network in evaluation mode; afterwards each of its modules is in its own mode again."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def classes_of(network: nn.Module, images: Images) -> int:
    """Return how many classes a classifier tells apart, by its answer to the first picture."""
    with evaluated(network):
        return network(images[:1]).shape[1]


@contextmanager
def drawn_by(generator: torch.Generator | None) -> Iterator[None]:
    """Let a generator decide about the layers that are made in this block.

    Layers are drawn from the global generator, which is as before afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        yield


def finite(loss: Tensor) -> Tensor:
    """Return a loss or a gradient. Raises NonFiniteError if it is not finite."""
    if not torch.isfinite(loss).all():
        raise NonFiniteError("the repair gave a loss or a gradient that is not finite: lower its rates")
    return loss


def held_out(count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return numbers of the pictures to learn from, and of a fifth to choose by."""
    order = torch.randperm(count, generator=generator)
    return order[count // 5 :], order[: count // 5]


@torch.no_grad()
def accuracy(network: nn.Module, images: Images, labels: Labels, batch_size: int = 250) -> float:
    """Return the share of pictures that are taken for what they are, in evaluation mode."""
    network.eval()
    right = [
        (network(some).argmax(1) == own).float()
        for some, own in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    ]
    return float(torch.cat(right).mean())


class Watch:
    """What some modules of a network put out in the last forward pass."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self._modules = [network.get_submodule(name) for name in names]
        self.seen: list[Tensor] = []

    def __enter__(self) -> "Watch":
        self.seen = []
        self._hooks = [
            each.register_forward_hook(lambda module, given, result: self.seen.append(result))
            for each in self._modules
        ]
        return self

    def __exit__(self, *reason: object) -> None:
        for hook in self._hooks:
            hook.remove()
