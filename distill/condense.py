"""A small training set out of a trained network: images recovered from its classes and its statistics.

SRe2L (Yin et al., NeurIPS 2023, arXiv 2306.13092) optimises noise until a network takes it for a class and
its batch normalisation sees in it the statistics of the training data. With a network that
`distill.methods.Guard` has trained it is GUARD (Xue et al., AAAI 2025, arXiv 2403.10045). The images are then
trained on with soft labels, `distill.methods.SoftLabels`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import NonFiniteError
from attacks.ball import Images
from distill.batchnorm import batchnorm, frozen
from distill.classifier import Classifier
from distill.losses import Labels

Planes = Float[Tensor, "batch channels height width"]


class StatisticsGap:
    """How far the inputs of each batch normalisation are from what it has learned, summed over the network.

    Of each: the length of the difference of means, and that of variances; that of the first counts `first`
    times.
    """

    def __init__(self, network: nn.Module, *, first: float = 10.0) -> None:
        self._layers = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
        if not self._layers:
            raise ValueError("the network has no batch normalisation, whose statistics images could have")
        self._first = first
        self._gaps: list[Tensor] = []

    @contextmanager
    def watch(self) -> Iterator[Callable[[], Tensor]]:
        """Watch one forward pass, and hand over the sum."""
        hooks = [layer.register_forward_pre_hook(self._look) for layer in self._layers]
        self._gaps = []
        try:
            yield self._total
        finally:
            for hook in hooks:
                hook.remove()

    def _look(self, layer: nn.BatchNorm2d, given: tuple[Planes]) -> None:
        (planes,) = given
        mean, variance = planes.mean((0, 2, 3)), planes.var((0, 2, 3), correction=0)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        gap = (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()
        self._gaps.append(self._first * gap if layer is self._layers[0] else gap)

    def _total(self) -> Tensor:
        return torch.stack(self._gaps).sum()


def recover(
    network: Classifier,
    labels: Labels,
    *,
    side: int = 32,
    steps: int = 1000,
    learning_rate: float = 0.25,
    statistics: float = 0.01,
    first: float = 10.0,
    shift: int = 4,
    generator: torch.Generator | None = None,
    callback: Callable[[int, float], object] = lambda step, loss: None,
) -> Images:
    """Return images that the network takes for `labels`, and whose statistics are those of its training.

    Args:
        network: trained, with batch normalisation; it stays as it is.
        labels: of the images, which are optimised together as one batch.
        side: of the images in pixels.
        steps: of Adam, whose rate falls by a cosine.
        learning_rate: in units of normalised pixels.
        statistics: weight of the gap of statistics beside the cross-entropy.
        first: weight of the first layer within that gap.
        shift: images are rolled by up to so many pixels at each step, so that no pixel is fitted alone.
        generator: of the noise that they begin as, and of the shifts.
        callback: called with the number of each step and its loss.

    Raises:
        ValueError: the network has no batch normalisation, or a label is none of its classes.
        NonFiniteError: a loss is not finite.
    """
    if len(labels) < 1 or int(labels.min()) < 0 or int(labels.max()) >= network.config["classes"]:
        raise ValueError(f"labels lie in 0 to {network.config['classes'] - 1}")
    gap = StatisticsGap(network, first=first)
    noise = torch.randn((len(labels), 3, side, side), generator=generator).to(network.mean)
    low, high = -network.mean / network.std, (1 - network.mean) / network.std
    pixels = noise.clamp(low, high).requires_grad_()
    adam = torch.optim.Adam([pixels], lr=learning_rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    with batchnorm(network, "eval"), frozen(network):
        for step in range(steps):
            by = [int(each) for each in torch.randint(-shift, shift + 1, (2,), generator=generator)]
            with gap.watch() as total:
                logits = network.network(pixels.roll(by, (2, 3)))
                loss = F.cross_entropy(logits, labels) + statistics * total()
            if not torch.isfinite(loss):
                raise NonFiniteError(f"the loss of step {step} is not finite: lower the learning rate")
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
            with torch.no_grad():
                pixels.copy_(pixels.clamp(low, high))
            callback(step, float(loss.detach()))
    return (pixels.detach() * network.std + network.mean).clamp(0, 1)
