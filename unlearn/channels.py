"""Channels of a classifier: convolutions, the batch normalisation behind them, and how they are pruned."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Layer:
    """A convolution and the batch normalisation that follows it."""

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d


def layers_of(network: nn.Module) -> list[Layer]:
    """Return the pairs of a network, in the order of its modules.

    Normalisations without a gain and a shift of their own, or without running statistics, are left out.

    Raises ValueError where there is none.
    """
    found: list[Layer] = []
    last: nn.Conv2d | None = None
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            last = module
        elif isinstance(module, nn.BatchNorm2d):
            whole = module.affine and module.track_running_stats
            if last is not None and last.out_channels == module.num_features and whole:
                found.append(Layer(name, last, module))
            last = None
    if not found:
        raise ValueError(
            "the network has no convolution with batch normalisation behind it, whose channels "
            "could be pruned"
        )
    return found


@torch.no_grad()
def prune(layer: Layer, channels: Bool[Tensor, " channels"]) -> None:
    """Silence channels of a layer: what comes out of their normalisation is 0, until it is trained."""
    layer.norm.weight[channels] = 0
    layer.norm.bias[channels] = 0


@contextmanager
def silent(layer: Layer) -> Iterator[None]:
    """Keep the pruned channels of a layer pruned while its network is trained.

    Where no ReLU follows at once, as in the last layer of a residual block, they would learn to speak again.
    """
    pruned = (layer.norm.weight == 0) & (layer.norm.bias == 0)
    hooks = [
        each.register_hook(lambda slope: slope.masked_fill(pruned, 0))
        for each in (layer.norm.weight, layer.norm.bias)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def lipschitz(layer: Layer) -> Float[Tensor, " channels"]:
    """Return an upper bound of how much each channel of a layer can amplify: the spectral norm of its kernel,
    as a matrix of inputs by places, times the gain of its normalisation (Zheng et al., ECCV 2022)."""
    assert layer.norm.running_var is not None
    gain = layer.norm.weight.abs() / (layer.norm.running_var + layer.norm.eps).sqrt()
    kernels = layer.conv.weight.detach()
    matrices = kernels.reshape(len(kernels), kernels.shape[1], -1)
    return torch.linalg.matrix_norm(matrices, ord=2) * gain.detach()


class ChannelMasks(nn.Module):
    """Factors and perturbations of every channel's normalisation while `applied`, as ANP has them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layers = layers_of(network)
        sizes = [layer.norm.num_features for layer in self.layers]
        device = self.layers[0].norm.weight.device
        self.masks = nn.ParameterList(nn.Parameter(torch.ones(size, device=device)) for size in sizes)
        self.gains = nn.ParameterList(nn.Parameter(torch.zeros(size, device=device)) for size in sizes)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(size, device=device)) for size in sizes)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run each normalisation with weight (mask + gain) w and bias (1 + shift) b, in evaluation mode."""
        hooks = []
        for number, layer in enumerate(self.layers):

            def changed(
                norm: nn.BatchNorm2d, given: tuple[Tensor], result: Tensor, number: int = number
            ) -> Tensor:
                weight = (self.masks[number] + self.gains[number]) * norm.weight
                bias = (1 + self.shifts[number]) * norm.bias
                return F.batch_norm(given[0], norm.running_mean, norm.running_var, weight, bias, eps=norm.eps)

            hooks.append(layer.norm.register_forward_hook(changed))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
