"""I-BAU: a repair against whatever one perturbation of all pictures could do."""

import copy
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import L2
from unlearn.bilevel import curvature, hypergradient
from unlearn.triggers import Images, Labels
from unlearn.tuning import accuracy, finite, held_out

_TRAVEL = 0.0125
"""The learning rate times the number of updates: how far Adam can take a weight."""
_RATE = 0.1
"""The inner rate of the released code. Its series diverges where the loss bends more than 2 over it."""


def universal_unlearning(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    rounds: int = 5,
    updates: int | None = None,
    ascent: int = 20,
    radius: float = 2.0,
    penalty: float = 1e-3,
    share: float = 0.1,
    terms: int = 5,
    learning_rate: float | None = None,
    batch_size: int = 100,
    allowed: float = 0.1,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """I-BAU (Zeng et al., ICLR 2022, arXiv 2110.03735): weights for which no one perturbation of all pictures
    helps, with the gradient through that perturbation.

    In each round a perturbation of all pictures ascends the loss less `penalty` times its squared length, for
    `ascent` steps of one batch each, and is cut to `radius`; then Adam makes `updates`, one pass by default,
    on the loss of batches of which a `share` carries it. `learning_rate` is by default 0.0125 over the number
    of all updates, so that few pictures change the network as much as many; the released code has 1e-4 and
    a share of 0.01. The hypergradient is a series of `terms` with the inner rate of that code, or a lower one
    where it would diverge. Of the rounds the last one counts after which accuracy on held-out pictures has
    fallen by no more than `allowed`: the perturbation may have become the sign of a class itself.
    """
    weights, ball = [each for each in network.parameters() if each.requires_grad], L2(radius)
    learn, hold = held_out(len(images), generator)
    least = accuracy(network, images[hold], labels[hold]) - allowed
    updates = updates or -(-len(learn) // batch_size)
    adam = torch.optim.Adam(weights, lr=learning_rate or _TRAVEL / (rounds * updates))
    kept = copy.deepcopy(network.state_dict())
    batches = _endless(images[learn], labels[learn], batch_size, generator)
    for _ in range(rounds):
        delta = torch.zeros_like(images[:1])
        for some, own in islice(batches, ascent):
            delta = delta.requires_grad_()
            loss = F.cross_entropy(network(some + delta), own) - penalty * delta.square().sum()
            (slope,) = torch.autograd.grad(loss, delta)
            delta = ball.project((delta + 4 / ascent * radius * ball.steepest(slope)).detach())
        rate = None
        for some, own in islice(batches, updates):
            carrying = max(1, round(share * len(some)))

            def outer(delta: Tensor, some: Images = some, own: Labels = own, count: int = carrying) -> Tensor:
                marked = torch.cat([some[:count] + delta, some[count:]])
                return F.cross_entropy(network(marked), own)

            def inner(delta: Tensor, some: Images = some, own: Labels = own) -> Tensor:
                return -F.cross_entropy(network(some + delta), own) + penalty * delta.square().sum()

            rate = rate or 1 / max(curvature(inner, delta), 1 / _RATE)
            slopes = hypergradient(outer, inner, delta, weights, rate=rate, terms=terms)
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = finite(slope)
            adam.step()
        if accuracy(network, images[hold], labels[hold]) >= least:
            kept = copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    return network


def _endless(
    images: Images, labels: Labels, size: int, generator: torch.Generator | None
) -> Iterator[tuple[Images, Labels]]:
    """Batches without end, in a new order in each pass."""
    while True:
        for some in torch.randperm(len(images), generator=generator).split(size):
            yield images[some], labels[some]
