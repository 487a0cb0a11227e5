"""Perturbing inputs to maximise an objective: one engine, `pgd`, over balls and objectives."""

from attacks.ball import L2, Ball, Linf
from attacks.objectives import Objective, autocast, cross_entropy, expect, margin, mean_of, with_gradient
from attacks.pgd import NonFiniteError, pgd

__all__ = [
    "L2",
    "Ball",
    "Linf",
    "NonFiniteError",
    "Objective",
    "autocast",
    "cross_entropy",
    "expect",
    "margin",
    "mean_of",
    "pgd",
    "with_gradient",
]
