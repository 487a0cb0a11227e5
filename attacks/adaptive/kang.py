"""DiffAttack of Kang et al.: also push the way back away from the way there."""

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from attacks.adaptive.expected import Score
from attacks.adaptive.gradients import Seeds, Step, trajectory
from attacks.ball import Images
from attacks.losses import Labels, Loss, Losses, margin

Level = tuple[float, float]


class Noising(Protocol):
    """A chain that says at which noise level (alpha, sigma) each of its states is, None where at none."""

    def chain(self, seeds: Seeds) -> list[Step]: ...

    def levels(self) -> Sequence[Level | None]: ...


def deviated(
    purifier: Noising,
    classifier: nn.Module,
    *,
    weight: float = 1.0,
    share: float = 1 / 3,
    loss: Loss = margin,
) -> Score:
    """Return the score of Kang et al. (2023, NeurIPS, arXiv 2311.16124), for `Expected.of`.

    To the classification loss it adds `weight` times the mean of `alpha_t^2 mean((x_t - x'_t)^2)` over
    states x'_t of the reverse chain, x_t being the clean picture noised to the same level with the noise of
    the forward pass. A `share` of the states, evenly spaced, takes part. Gradients are exact.

    The deviation's weight is not stated in the paper; nor was its code published.
    """
    levels = purifier.levels()
    start = next(number for number, level in enumerate(levels) if level and level[1] > 0)
    back = [number for number in range(start + 1, len(levels)) if (levels[number] or (0, 0))[1] > 0]
    chosen = back[:: max(round(1 / share), 1)]

    def score(images: Images, seeds: Seeds, labels: Labels) -> Losses:
        states = trajectory(purifier.chain(seeds), images)
        losses = loss(classifier(states[-1]), labels)
        if not weight or not chosen:
            return losses
        clean, noised = states[start - 1], states[start]
        alpha, sigma = levels[start] or (1.0, 0.0)
        noise = (noised - alpha * clean) / sigma
        for number in chosen:
            here = levels[number] or (1.0, 0.0)
            there = here[0] * clean + here[1] * noise
            apart = (there - states[number][:, : clean.shape[1]]).square().flatten(1).mean(1)
            losses = losses + weight * here[0] ** 2 * apart / len(chosen)
        return losses

    return score
