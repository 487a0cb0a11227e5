"""Diff-PGD: return not the perturbed picture but what a diffusion model makes of it."""

from collections.abc import Callable

import torch

from attacks.adaptive.gradients import Seeds, trajectory
from attacks.ball import Ball, Images
from attacks.generative.chain import denoised, fresh
from attacks.losses import Labels, Logits, Losses, cross_entropy
from attacks.pgd import pgd
from diffusion.model import Condition, DiffusionModel


def diff_pgd(
    model: DiffusionModel,
    classifier: Callable[[Images], Logits],
    images: Images,
    labels: Labels,
    ball: Ball,
    *,
    t: int = 100,
    steps: int = 10,
    iterations: int = 10,
    step_size: float = 2 / 255,
    condition: Condition | None = None,
    generator: torch.Generator | None = None,
) -> Images:
    """Return natural-looking adversarial images (Xue et al., 2023, NeurIPS, arXiv 2305.16494).

    PGD whose gradient passes through an edit by the model (SDEdit), with one noise for the whole attack; the
    edited picture is returned. The ball bounds what is edited, not what comes back: report distances. It is
    no attack on a purifier, whose draw the attacker cannot choose: that is `attacks.adaptive`.

    Args:
        model: the prior.
        classifier: images in [0, 1] to logits.
        images: float [batch, 3, height, width] in [0, 1].
        labels: true classes.
        ball: bounds the perturbation before the edit.
        t: how far into the noise the edit goes.
        steps: its network calls.
        iterations: of PGD.
        step_size: of PGD, in the ball's units.
        condition: what the model is told.
        generator: of the noise, which all images share.

    Raises:
        ValueError: for a `t` outside the schedule, or more steps than `t`.
    """
    model.schedule.lowest(t, steps)
    seeds: Seeds = fresh(len(images), generator)
    chain = denoised(model, seeds, t=t, steps=steps, condition=condition)

    def objective(perturbed: Images) -> Losses:
        return cross_entropy(classifier(trajectory(chain, perturbed)[-1]), labels)

    perturbed = pgd(objective, images, ball, steps=iterations, step_size=step_size)
    with torch.no_grad():
        return trajectory(chain, perturbed)[-1]
