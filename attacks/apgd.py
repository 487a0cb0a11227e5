"""Auto-PGD (Croce and Hein, 2020, ICML, arXiv 2003.01690), for deterministic and for random objectives."""

from collections.abc import Callable

import torch

from attacks.ball import Ball, Images
from attacks.losses import Losses
from attacks.objectives import Objective, value_and_gradient


def checkpoints(steps: int) -> list[int]:
    """Return the iterations after which step sizes are reconsidered.

    The gaps are 22 % of `steps`, then 3 % less each time, but not below 6 %: 22, 41, 57, 70, 80, 87, 93, 99
    of 100.
    """
    found, gap, at = [], max(int(0.22 * steps), 1), 0
    while at + gap < steps:
        at += gap
        found.append(at)
        gap = max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return found


def apgd(
    objective: Objective,
    images: Images,
    ball: Ball,
    *,
    eps: float,
    steps: int = 100,
    rho: float = 0.75,
    redraw: Callable[[], None] | None = None,
    generator: torch.Generator | None = None,
) -> Images:
    """Maximise `objective` within `ball` and [0, 1], with a step size that each image adapts for itself.

    A random objective is best held fixed between two checkpoints, so that its values compare: pass
    `Expected(…, fixed=True)` and its `redraw`, which is called at each checkpoint, where the best point is
    then judged anew. All images are attacked to the end, fooled or not, and the point of highest mean loss
    is returned: a single lucky draw decides nothing.

    Args:
        objective: one score per image.
        images: float [batch, channels, height, width] in [0, 1].
        ball: the allowed perturbations.
        eps: the ball's radius, whose double is the first step.
        steps: gradient evaluations.
        rho: the share of steps in a window that must gain for the step size to stay.
        redraw: called at checkpoints, for random objectives.
        generator: randomness of the start, which all images share.
    """
    original = images.detach()

    def within(points: Images) -> Images:
        return (original + ball.project(points - original)).clamp(0, 1)

    start = ball.random_start(original, generator)
    current = within(original + start * (eps / ball.distance(start).clamp_min(1e-12)).view(-1, 1, 1, 1))
    previous = current
    losses, gradient = value_and_gradient(objective, current)
    best, best_losses, best_gradient = current, losses, gradient
    length = torch.full_like(losses, 2 * eps)
    gains, reduced, best_before = torch.zeros_like(losses), torch.ones_like(losses, dtype=torch.bool), losses
    windows, last = checkpoints(steps), 0

    for step in range(steps):
        ahead = within(current + _column(length) * ball.steepest(gradient))
        share = 1.0 if step == 0 else 0.75
        moved = within(current + share * (ahead - current) + (1 - share) * (current - previous))
        previous, current = current, moved
        before = losses
        losses, gradient = value_and_gradient(objective, current)
        gains = gains + (losses > before)
        better = losses > best_losses
        best, best_gradient = _where(better, current, best), _where(better, gradient, best_gradient)
        best_losses = torch.where(better, losses, best_losses)
        if step + 1 in windows:
            stalled = (best_losses <= best_before) & ~reduced
            halve = (gains <= rho * (step + 1 - last)) | stalled
            length = torch.where(halve, length / 2, length)
            if redraw is not None:
                redraw()
                best_losses, best_gradient = value_and_gradient(objective, best)
                losses, gradient = value_and_gradient(objective, current)
            current, gradient = _where(halve, best, current), _where(halve, best_gradient, gradient)
            losses = torch.where(halve, best_losses, losses)
            gains, reduced, best_before, last = torch.zeros_like(gains), halve, best_losses, step + 1
    return best


def _column(values: Losses) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)


def _where(chosen: torch.Tensor, one: Images, other: Images) -> Images:
    return torch.where(_column(chosen), one, other)
