"""Attacks that know the defence: gradients through randomised purifiers, and averages over their draws."""

from attacks.adaptive.diffhammer import Hammer
from attacks.adaptive.expected import Expected, with_seeds
from attacks.adaptive.gradients import (
    BPDA,
    Adjoint,
    Chain,
    Checkpointed,
    Exact,
    ReplayError,
    ScoreOnly,
    Surrogate,
    trajectory,
)
from attacks.adaptive.kang import deviated

__all__ = [
    "BPDA",
    "Adjoint",
    "Chain",
    "Checkpointed",
    "Exact",
    "Expected",
    "Hammer",
    "ReplayError",
    "ScoreOnly",
    "Surrogate",
    "deviated",
    "trajectory",
    "with_seeds",
]
