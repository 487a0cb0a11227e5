"""The gradient of an outer loss through the solution of an inner one, without solving for it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]


def hypergradient(
    outer: Loss, inner: Loss, at: Tensor, weights: Sequence[Tensor], *, rate: float, terms: int
) -> list[Tensor]:
    """Return the gradient in `weights` of outer(x*), where x* minimises `inner`, at an `at` near x*.

    By the implicit function theorem, as the fixed point of one step of gradient descent with `rate`; the
    inverse is a Neumann series of `terms` (Grazzi et al., ICML 2020, arXiv 2006.16218). Both losses depend on
    the weights; `rate` must be below 2 over the greatest curvature of `inner`, or the series diverges.
    """
    at = at.detach().requires_grad_()
    direct = torch.autograd.grad(outer(at), [at, *weights], allow_unused=True)
    toward, own = direct[0], direct[1:]
    (slope,) = torch.autograd.grad(inner(at), at, create_graph=True)
    moved = at - rate * slope
    seen = toward = torch.zeros_like(at) if toward is None else toward
    for _ in range(terms):
        (carried,) = torch.autograd.grad(moved, at, seen, retain_graph=True)
        seen = carried + toward
    through = torch.autograd.grad(moved, weights, seen, allow_unused=True)
    return [
        sum((part for part in (one, other) if part is not None), torch.zeros_like(weight))
        for one, other, weight in zip(own, through, weights, strict=True)
    ]


def curvature(loss: Loss, at: Tensor, *, steps: int = 5) -> float:
    """Return about the greatest curvature of a loss at a place, either way: some steps of power iteration on
    its second derivative, from the slope. It is never more than the greatest."""
    at = at.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(at), at, create_graph=True)
    seen, bent = slope.detach(), torch.zeros(())
    for _ in range(steps):
        length = seen.norm()
        if not length:
            break
        (seen,) = torch.autograd.grad(slope, at, seen / length, retain_graph=True)
        bent = seen.norm()
    return float(bent)
