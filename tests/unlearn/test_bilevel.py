"""The hypergradient against a closed form."""

import torch

from unlearn.bilevel import hypergradient


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
