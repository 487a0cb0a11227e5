"""Convolutions that remember no more than a frozen network needs.

The gradient of a convolution with respect to its input takes the weight alone; the input is for the gradient
of the weight. PyTorch keeps both, whether or not the weight is trained. In a frozen residual network what is
kept that way is about half of the graph.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


class FrozenConv2d(nn.Conv2d):
    """A convolution whose graph holds its weight and not its input, as long as the weight is not trained.

    Its values and gradients are `nn.Conv2d`'s, second derivatives and autocast included.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        kept = torch.is_grad_enabled() and input.requires_grad
        if trained or not kept or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super()._conv_forward(input, weight, bias)
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        with torch.autocast(kind, enabled=False):
            return _Convolution.apply(input, weight, bias, settings)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = input.shape, settings
        return F.conv2d(input, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,), (gradient,) = ctx.saved_tensors, grad_outputs
        return conv2d_input(ctx.shape, weight, gradient, *ctx.settings), None, None, None


def make_lean(network: nn.Module) -> None:
    """Turn the plain convolutions of a network into `FrozenConv2d`, in place; parameters are untouched."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = FrozenConv2d
