"""I-BAU: a repair against whatever one perturbation of all pictures could do."""

from itertools import cycle, islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import L2
from unlearn.bilevel import hypergradient
from unlearn.triggers import Images, Labels
from unlearn.tuning import finite


def universal_unlearning(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    rounds: int = 5,
    ascent: int = 20,
    radius: float = 3.0,
    penalty: float = 1e-3,
    share: float = 0.01,
    terms: int = 5,
    learning_rate: float = 1e-4,
    batch_size: int = 100,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """I-BAU (Zeng et al., ICLR 2022, arXiv 2110.03735): weights for which no one perturbation of all pictures
    helps, with the gradient through that perturbation.

    In each round a perturbation of all pictures ascends the loss less `penalty` times its squared length, for
    `ascent` steps of one batch each, and is cut to `radius`; then Adam descends the loss of batches of which
    a `share` carries it. The hypergradient is a series of `terms` with the released code's inner rate of 0.1.
    """
    weights, ball = [each for each in network.parameters() if each.requires_grad], L2(radius)
    adam = torch.optim.Adam(weights, lr=learning_rate)
    for _ in range(rounds):
        order = torch.randperm(len(images), generator=generator)
        batches = [(images[some], labels[some]) for some in order.split(batch_size)]
        delta = torch.zeros_like(images[:1])
        for some, own in islice(cycle(batches), ascent):
            delta = delta.requires_grad_()
            loss = F.cross_entropy(network(some + delta), own) - penalty * delta.square().sum()
            (slope,) = torch.autograd.grad(loss, delta)
            delta = ball.project((delta + 4 / ascent * radius * ball.steepest(slope)).detach())
        for some, own in batches:
            carrying = max(1, round(share * len(some)))

            def outer(delta: Tensor, some: Images = some, own: Labels = own, count: int = carrying) -> Tensor:
                marked = torch.cat([some[:count] + delta, some[count:]])
                return F.cross_entropy(network(marked), own)

            def inner(delta: Tensor, some: Images = some, own: Labels = own) -> Tensor:
                return -F.cross_entropy(network(some + delta), own) + penalty * delta.square().sum()

            slopes = hypergradient(outer, inner, delta, weights, rate=0.1, terms=terms)
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = finite(slope)
            adam.step()
    return network
