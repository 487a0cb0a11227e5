"""Attacks that know the defence: gradients through randomised purifiers, and averages over their draws."""

from attacks.adaptive.expected import Expected, with_seeds
from attacks.adaptive.gradients import (
    BPDA,
    Chain,
    Checkpointed,
    Exact,
    ReplayError,
    ScoreOnly,
    Surrogate,
    trajectory,
)

__all__ = [
    "BPDA",
    "Chain",
    "Checkpointed",
    "Exact",
    "Expected",
    "ReplayError",
    "ScoreOnly",
    "Surrogate",
    "trajectory",
    "with_seeds",
]
