"""What batch normalisation does while an attack runs, and who learns meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormMode = Literal["eval", "train", "batch"]


@contextmanager
def batchnorm(network: nn.Module, mode: BatchNormMode) -> Iterator[None]:
    """Run the network on its running statistics ("eval"), on the batch's, updating the running ones at each
    call ("train"), or on the batch's without touching them ("batch"); as before afterwards, whatever happens.
    """
    if mode not in ("eval", "train", "batch"):
        raise ValueError(f"batch normalisation in the attack is 'eval', 'train' or 'batch'; got {mode!r}")
    training = {module: module.training for module in network.modules()}
    tracking = {each: each.track_running_stats for each in training if isinstance(each, _BatchNorm)}
    network.train(mode != "eval")
    if mode == "batch":
        for module in tracking:
            module.track_running_stats = False
    try:
        yield
    finally:
        for module, before in training.items():
            module.training = before
        for module, before in tracking.items():
            module.track_running_stats = before


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let no weight require a gradient meanwhile: an attack asks for the images' alone, a third cheaper."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
