"""The hypergradient and the curvature against closed forms."""

import pytest
import torch

from unlearn.bilevel import curvature, hypergradient


def test_the_hypergradient_of_quadratic_losses_is_the_closed_form(generator):
    """inner = (x - B w)' A (x - B w) / 2 has x* = B w; outer = |x - c|^2 / 2 + u' w, whose gradient in w
    through x* is B' (x* - c) + u."""
    base = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    a = base @ base.T / 4 + torch.eye(4, dtype=torch.float64)
    b = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    c, u = torch.randn(4, generator=generator).double(), torch.randn(3, generator=generator).double()
    w = torch.randn(3, generator=generator).double().requires_grad_()

    def inner(x):
        return (x - b @ w) @ a @ (x - b @ w) / 2

    def outer(x):
        return (x - c).square().sum() / 2 + u @ w

    solution = (b @ w).detach()
    expected = b.T @ (solution - c) + u
    rate = 1 / float(torch.linalg.eigvalsh(a).max())
    (found,) = hypergradient(outer, inner, solution, [w], rate=rate, terms=400)
    torch.testing.assert_close(found, expected.detach(), atol=1e-8, rtol=1e-8)
    # each further term brings it nearer, and none is the direct gradient with one step of the inner descent
    errors = [
        float((hypergradient(outer, inner, solution, [w], rate=rate, terms=terms)[0] - expected).norm())
        for terms in (0, 5, 25)
    ]
    assert errors[0] > errors[1] > errors[2]
    first = u + rate * (a @ b).T @ (solution - c)
    torch.testing.assert_close(
        hypergradient(outer, inner, solution, [w], rate=rate, terms=0)[0], first.detach()
    )


def test_the_curvature_of_a_quadratic_loss_is_its_largest_eigenvalue_either_way(generator):
    base = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    values = torch.linalg.eigvalsh(base + base.T).abs().max()
    at = torch.randn(6, generator=generator, dtype=torch.float64)

    def loss(x):
        return x @ (base + base.T) @ x / 2

    assert curvature(loss, at, steps=300) == pytest.approx(float(values), rel=1e-4)
    rough = [curvature(loss, at, steps=steps) for steps in (1, 2, 5, 20)]
    assert rough == sorted(rough)  # never more than the greatest
    assert rough[-1] <= float(values) * (1 + 1e-9)


def test_a_loss_that_is_flat_has_no_curvature():
    assert curvature(lambda x: (0 * x).sum(), torch.ones(3)) == 0
