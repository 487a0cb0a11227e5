"""Expectation over the draws of a randomised classifier, batched: what its attacker really maximises."""

import inspect
from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import nn

from attacks.adaptive.gradients import Seeds
from attacks.ball import Images
from attacks.losses import Labels, Logits, Loss, Losses, margin
from attacks.objectives import require_graph, with_gradient

Randomised = Callable[[Images, Seeds], Logits]
Score = Callable[[Images, Seeds, Labels], Losses]
"""What an attacker maximises at one draw for each image."""


class Expected:
    """The mean loss over `draws` draws of the defence, an objective (Athalye et al., 2018, arXiv 1707.07397).

    The mean of losses, not the loss of mean logits: a defender who votes never averages logits. Draws run
    as one batch, in parts of `micro_batch`, one graph at a time; the value is theirs all, not the last
    one's. Every image gets the same seeds, so that its result does not depend on its neighbours, and every
    call gets new ones unless `fixed`; then they change at `redraw()` only, and points can be compared.
    """

    def __init__(
        self,
        model: nn.Module | Randomised,
        labels: Labels,
        loss: Loss = margin,
        *,
        draws: int = 20,
        micro_batch: int = 256,
        fixed: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take a classifier whose randomness is settled by seeds, or any other; see `with_seeds`.

        Raises ValueError for no draws or an empty micro-batch.
        """
        if draws < 1 or micro_batch < 1:
            raise ValueError(f"draws and micro_batch must be at least 1; got {draws} and {micro_batch}")
        decide = with_seeds(model)
        self.score: Score = lambda images, seeds, truth: loss(decide(images, seeds), truth)
        self.labels, self.draws, self.micro_batch = labels, draws, micro_batch
        self.fixed, self.generator = fixed, generator
        self.redraw()

    @classmethod
    def of(cls, score: Score, labels: Labels, **options: Any) -> Self:
        """Take any score of a draw, such as `kang.deviated`; `options` are the constructor's."""
        made = cls(lambda images, seeds: images, labels, **options)
        made.score = score
        return made

    def redraw(self) -> None:
        """Draw new seeds, one per draw."""
        self.seeds = torch.randint(2**62, (self.draws,), generator=self.generator)

    def __call__(self, images: Images) -> Losses:
        if not self.fixed:
            self.redraw()
        value, gradient = images.new_zeros(len(images)), torch.zeros_like(images)
        which = torch.arange(len(images), device=images.device).repeat_interleave(self.draws)
        seeds = self.seeds.repeat(len(images))
        for rows, dealt in zip(which.split(self.micro_batch), seeds.split(self.micro_batch), strict=True):
            leaf = images.detach()[rows].requires_grad_(torch.is_grad_enabled())
            losses = self.score(leaf, dealt, self.labels[rows])
            value.index_add_(0, rows, losses.detach().to(value))
            if torch.is_grad_enabled():
                require_graph(losses)
                gradient.index_add_(0, rows, torch.autograd.grad(losses.sum(), leaf)[0])
        return with_gradient(images, gradient / self.draws, value / self.draws)


def with_seeds(model: nn.Module | Randomised) -> Randomised:
    """Return a classifier as a function of images and seeds.

    `purify.PurifiedClassifier` is one already; an `nn.Sequential` that begins with a purifier hands the seeds
    to it; any other model is called without them and draws as it likes.
    """
    forward = model.forward if isinstance(model, nn.Module) else model
    if "seeds" in inspect.signature(forward).parameters:
        return model
    if isinstance(model, nn.Sequential) and len(model) and hasattr(model[0], "chain"):
        purifier, rest = model[0], model[1:]
        return lambda images, seeds: rest(purifier(images, seeds))
    plain = cast(Callable[[Images], Logits], model)
    return lambda images, seeds: plain(images)
