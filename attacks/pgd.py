"""Projected gradient ascent: the only perturbation loop of the project."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from attacks.ball import Ball, Images, Losses
from attacks.objectives import Objective, normalised, require_graph

Mask = Float[Tensor, "batch_or_1 channels_or_1 height width"]
Callback = Callable[[int, Images, Losses], bool | None]


class NonFiniteError(ArithmeticError):
    """An objective or its gradient left the finite numbers."""


def pgd(
    objective: Objective,
    images: Images,
    ball: Ball,
    *,
    steps: int,
    step_size: float | Callable[[int], float],
    start: Images | None = None,
    random_start: bool = False,
    mask: Mask | None = None,
    momentum: float = 0.0,
    draws: int = 1,
    best: bool = False,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Images:
    """Maximise `objective` over perturbations of `images` within `ball` and within [0,1].

    Projected gradient descent of Madry et al. (ICLR 2018, arXiv 1706.06083), written as ascent; with
    `momentum`, the iterative method of Dong et al. (CVPR 2018, arXiv 1710.06081).

    Args:
        objective: scores each image; called with [batch, channels, height, width], returns losses [batch].
        images: float [batch, channels, height, width] in [0,1]; worked on in float32 or wider.
        ball: the allowed perturbations, for instance `Linf(8/255)`.
        steps: number of ascent steps, at least 1.
        step_size: length of a step in the ball's units, or a function of the step (0, 1, …) for a schedule.
        start: begin at these perturbed images, brought into the ball, instead of at `images`.
        random_start: begin at a uniform draw from the ball, the same for every image, instead of at `images`;
            without meaning beside a `start`.
        mask: 1 where pixels may change and 0 where they stay, broadcastable to `images`.
        momentum: decay of the accumulated gradient, which is normalised to a mean magnitude of 1 per image;
            0 is none.
        draws: Monte-Carlo calls of a random objective whose gradients are averaged in one step.
        best: return, per image, the iterate with the highest loss instead of the last. It costs one call more
            and is meant for deterministic objectives: a random one's losses do not compare between steps.
        generator: randomness of the random start.
        callback: called as `callback(step, images, losses)` after each step, with the losses of the point
            stepped from; a true result ends the loop there.

    Returns:
        Perturbed images, detached, of the shape of `images`. Each result depends on its own image alone.

    Raises:
        ValueError: for arguments out of range, losses that are not one per image, or no gradient at all.
        NonFiniteError: as soon as a loss or gradient is not finite; the message names step and dtype.
    """
    if steps < 1 or draws < 1:
        raise ValueError(f"steps and draws must be at least 1; got steps={steps}, draws={draws}")
    original = images.detach().to(torch.promote_types(images.dtype, torch.float32))
    current = original
    if start is not None:
        current = _within(start.detach().to(original), original, ball, mask)
    elif random_start:
        current = _within(original + ball.random_start(original, generator), original, ball, mask)
    velocity = torch.zeros_like(original) if momentum else None
    record = _Best(current) if best else None

    for step in range(steps):
        losses, gradient = _ascent_direction(objective, current, draws, step)
        if record:
            record.update(current, losses)
        if mask is not None:
            gradient = gradient * mask
        if velocity is not None:
            velocity = momentum * velocity + normalised(gradient)
            gradient = velocity
        length = step_size(step) if callable(step_size) else step_size
        current = _within(current + length * ball.steepest(gradient), original, ball, mask)
        if callback is not None and callback(step, current, losses):
            break
    if record:
        with torch.no_grad():
            record.update(current, objective(current))
        return record.images
    return current


def _within(perturbed: Images, original: Images, ball: Ball, mask: Mask | None) -> Images:
    delta = ball.project(perturbed - original)
    if mask is not None:
        delta = delta * mask
    # Clipping to [0,1] after projecting only shortens the perturbation, so the result is in both sets.
    return (original + delta).clamp(0, 1)


def _ascent_direction(objective: Objective, images: Images, draws: int, step: int) -> tuple[Losses, Images]:
    """Losses and gradient averaged over `draws`, one graph alive at a time."""
    leaf, dtype = images.detach().requires_grad_(), images.dtype
    total, gradient = leaf.new_zeros(len(leaf)), torch.zeros_like(images)
    for _ in range(draws):
        with torch.enable_grad():
            losses = objective(leaf)
        if losses.shape != (len(leaf),):
            got = tuple(losses.shape)
            raise ValueError(f"an objective returns one loss per image, shape ({len(leaf)},); got {got}")
        require_graph(losses)
        gradient += torch.autograd.grad(losses, leaf, torch.ones_like(losses))[0]
        total, dtype = total + losses.detach(), losses.dtype
    _require_finite(total, "loss", dtype, step)
    _require_finite(gradient, "gradient", dtype, step)
    return total / draws, gradient / draws


def _require_finite(values: Tensor, what: str, dtype: torch.dtype, step: int) -> None:
    if not torch.isfinite(values).all():
        name = str(dtype).removeprefix("torch.")
        raise NonFiniteError(
            f"the {what} is not finite at step {step} (computed in {name}); try --dtype float32"
        )


class _Best:
    """The highest-loss iterate of each image so far."""

    def __init__(self, images: Images) -> None:
        self.images = images.clone()
        self.losses = images.new_full((len(images),), -torch.inf)

    def update(self, images: Images, losses: Losses) -> None:
        better = losses > self.losses
        self.losses = torch.where(better, losses, self.losses)
        self.images = torch.where(better.view(-1, 1, 1, 1), images, self.images)
