"""Objectives: what an attack maximises, one score per image, and the combinators that build one from
others."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from attacks import losses
from attacks.ball import Images
from attacks.losses import Labels, Losses

Transform = Callable[[Images], Images]


@runtime_checkable
class Objective(Protocol):
    """Scores each image; engines ascend. A targeted or descending method returns a negated loss."""

    def __call__(self, images: Images, /) -> Losses: ...


def cross_entropy(model: nn.Module, labels: Labels) -> Objective:
    """The cross-entropy of a classifier [batch, 3, height, width] -> logits at `labels`, one value per
    image."""
    return lambda images: losses.cross_entropy(model(images), labels)


def margin(model: nn.Module, labels: Labels) -> Objective:
    """The best wrong logit minus the right one: positive when fooled."""
    return lambda images: losses.margin(model(images), labels)


def with_gradient(images: Images, gradient: Images, value: Losses) -> Losses:
    """Losses that report `value` and whose gradient with respect to `images` is exactly `gradient`.

    Lets a gradient that is not a plain backward pass (score distillation, the split chain rule, normalised
    ensembles) travel through engines that call `backward`. `images` may be any tensor on the graph, latents
    included.
    """
    inner = (gradient.detach() * images).flatten(1).sum(1)
    return value.detach() + (inner - inner.detach())


def expect(objective: Objective, transforms: Sequence[Transform], *, draws: int = 1) -> Objective:
    """Expectation over transformations (Athalye et al., ICML 2018, arXiv 1707.07397).

    The mean of `objective` over every transform in `transforms`, each called `draws` times; a random
    transform draws anew each time. Include the identity (`lambda images: images`) to keep the untransformed
    picture in the mean.
    """
    if not transforms or draws < 1:
        raise ValueError(
            f"expect needs at least one transform and one draw; got {len(transforms)} and {draws}"
        )
    calls = [transform for transform in transforms for _ in range(draws)]

    def expected(images: Images) -> Losses:
        value, gradient = images.new_zeros(len(images)), torch.zeros_like(images)
        for transform in calls:
            scores, part = value_and_gradient(partial(_after, transform, objective), images)
            value, gradient = value + scores / len(calls), gradient + part / len(calls)
        return with_gradient(images, gradient, value)

    return expected


def _after(transform: Transform, objective: Objective, images: Images) -> Losses:
    return objective(transform(images))


def mean_of(objectives: Sequence[Objective], weights: Sequence[float] | None = None) -> Objective:
    """An ensemble: the weighted mean of the objectives' gradients, each first scaled to a mean magnitude of 1
    per image.

    Without the scaling the surrogate with the largest latent would decide alone. One graph is alive at a
    time.
    """
    weights = [1 / len(objectives)] * len(objectives) if weights is None else list(weights)
    if not objectives or len(weights) != len(objectives):
        raise ValueError(f"mean_of needs one weight per objective; got {len(objectives)} and {len(weights)}")

    def ensemble(images: Images) -> Losses:
        value, gradient = images.new_zeros(len(images)), torch.zeros_like(images)
        for weight, objective in zip(weights, objectives, strict=True):
            scores, part = value_and_gradient(objective, images)
            value, gradient = value + weight * scores, gradient + weight * normalised(part)
        return with_gradient(images, gradient, value)

    return ensemble


def autocast(objective: Objective, dtype: torch.dtype) -> Objective:
    """Run the networks of `objective` in `dtype` under autocast; images, perturbation and losses stay as
    they are."""

    def cast(images: Images) -> Losses:
        with torch.autocast(images.device.type, dtype):
            return objective(images).to(images.dtype)

    return cast


def value_and_gradient(objective: Objective, images: Images) -> tuple[Losses, Images]:
    """Evaluate `objective` on a detached copy of `images` and free its graph: detached losses [batch] and
    gradient."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        scores = objective(leaf)
        require_graph(scores)
        return scores.detach(), torch.autograd.grad(scores.sum(), leaf)[0]


def require_graph(scores: Losses) -> None:
    """Raise ValueError if no gradient can reach the images, as when a defence runs under `no_grad`."""
    if not scores.requires_grad:
        raise ValueError(
            "the objective gives no gradient: something in it runs under torch.no_grad() or detaches the "
            "images; take that away, or attack it through attacks.adaptive.BPDA"
        )


def normalised(gradient: Images) -> Images:
    """Scale each image's gradient to a mean magnitude of 1, leaving an all-zero one alone."""
    scale = gradient.abs().flatten(1).mean(1).view(-1, *(1 for _ in gradient.shape[1:]))
    return gradient / scale.clamp_min(torch.finfo(gradient.dtype).tiny)
