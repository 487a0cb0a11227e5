"""Intervals of rates."""

import math


def wilson(successes: int, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of a rate (Wilson, 1927); (0, 1) where nothing was tried."""
    if n == 0:
        return 0.0, 1.0
    rate, denominator = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / denominator
    half = z / denominator * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
