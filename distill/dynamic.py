"""One network that holds many: elastic width, depth and bottlenecks over the same weights.

The super-network of ProARD (progressive adversarial robustness distillation), which trains it in stages: see
`distill.methods.ProArd`. A smaller network is the first channels of each layer and the first blocks of each
stage, so channels are sorted by importance before they are shrunk. Batch normalisation sees the batch while
it trains and keeps no statistics, since no two networks share them: `recalibrate` before use, then `extract`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.ball import Images

DEPTHS = (2, 2, 4, 2)
"""Blocks of each stage that are always there."""
MOST_BLOCKS, WIDEST, MOST_RATIO = 2, 1.0, 0.35
"""Of the largest network: further blocks, share of the channels, share of a block's that its middle has."""


@dataclass(frozen=True)
class Shape:
    """A network among those that a `DynamicResNet` holds; the largest by default."""

    width: float = WIDEST
    extra: tuple[int, ...] = (MOST_BLOCKS,) * len(DEPTHS)
    """Further blocks of each stage."""
    ratio: tuple[float, ...] = (MOST_RATIO,) * len(DEPTHS)
    """Of the middle of each stage's bottlenecks to their ends."""

    def __post_init__(self) -> None:
        fits = 0 < self.width <= WIDEST and len(self.extra) == len(self.ratio) == len(DEPTHS)
        if not fits or not all(0 <= each <= MOST_BLOCKS for each in self.extra):
            raise ValueError(f"no network has {self}: widths are in (0, 1], extra blocks 0 to {MOST_BLOCKS}")
        if not all(0 < each <= MOST_RATIO for each in self.ratio):
            raise ValueError(f"the middle of a block is a share of it in (0, {MOST_RATIO}]; got {self.ratio}")

    def __str__(self) -> str:
        extra, ratio = "_".join(map(str, self.extra)), "_".join(f"{each:g}" for each in self.ratio)
        return f"w{self.width:g}-d{extra}-e{ratio}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` writes. Raises ValueError for another text."""
        found = re.fullmatch(r"w([\d.]+)-d([\d_]+)-e([\d._]+)", text)
        if found is None:
            raise ValueError(f"a shape is written as {cls()}; got {text!r}")
        extra = tuple(int(each) for each in found[2].split("_"))
        return cls(float(found[1]), extra, tuple(float(each) for each in found[3].split("_")))


@dataclass(frozen=True)
class Sizes:
    """Channels and blocks of a network."""

    stem: int
    out: tuple[int, ...]
    middle: tuple[int, ...]
    depth: tuple[int, ...]

    @classmethod
    def of(cls, base: int, shape: Shape) -> Self:
        """Return the sizes of a shape, where the largest network's first stage has `base` channels."""
        out = tuple(_rounded(base * 2**stage * shape.width) for stage in range(len(DEPTHS)))
        middle = tuple(_rounded(each * ratio) for each, ratio in zip(out, shape.ratio, strict=True))
        depth = tuple(each + more for each, more in zip(DEPTHS, shape.extra, strict=True))
        return cls(_rounded(base / 4 * shape.width), out, middle, depth)


def _rounded(channels: float) -> int:
    return max(8, round(channels / 8) * 8)


class _ElasticNorm(nn.BatchNorm2d):
    """Normalises however many channels there are; its statistics come from `recalibrate` alone."""

    gathered: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, input: Tensor) -> Tensor:
        count = input.shape[1]
        assert self.running_mean is not None
        assert self.running_var is not None
        weight, bias = self.weight[:count], self.bias[:count]
        if self.gathered is not None:
            variance, mean = torch.var_mean(input.detach(), (0, 2, 3))
            self.gathered.append((mean, variance))
        if self.training or self.gathered is not None:
            return F.batch_norm(input, None, None, weight, bias, True, 0.0, self.eps)
        mean, variance = self.running_mean[:count], self.running_var[:count]
        return F.batch_norm(input, mean, variance, weight, bias, False, 0.0, self.eps)


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, middle: int, out: int, stride: int, norm: type[nn.BatchNorm2d]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, middle, 1, bias=False), norm(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False), norm(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, out, 1, bias=False), norm(out)
        convolved = stride != 1 or channels != out
        short = [nn.Conv2d(channels, out, 1, stride, bias=False), norm(out)] if convolved else []
        self.shortcut = nn.Sequential(*short)

    def forward(self, x: Tensor, middle: int, out: int) -> Tensor:
        y = F.relu(self.bn1(_convolved(self.conv1, x, middle)))
        y = F.relu(self.bn2(_convolved(self.conv2, y, middle)))
        y = self.bn3(_convolved(self.conv3, y, out))
        for conv, norm in zip(self.shortcut[::2], self.shortcut[1::2], strict=True):
            assert isinstance(conv, nn.Conv2d)
            x = norm(_convolved(conv, x, out))
        return F.relu(y + x)


def _convolved(conv: nn.Conv2d, x: Tensor, out: int) -> Tensor:
    """Convolve by the first `out` kernels, and of them the planes that there are."""
    return F.conv2d(x, conv.weight[:out, : x.shape[1]], None, conv.stride, conv.padding)


class BottleneckResNet(nn.Module):
    """A ResNet of bottlenecks for 32 pixel images, by its sizes; `active` are those that are in use."""

    def __init__(self, sizes: Sizes, classes: int = 10, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.active = sizes
        self.conv1, self.bn1 = nn.Conv2d(3, sizes.stem, 3, 1, 1, bias=False), norm(sizes.stem)
        self.stages, channels = nn.ModuleList(), sizes.stem
        for number, (out, middle, depth) in enumerate(zip(sizes.out, sizes.middle, sizes.depth, strict=True)):
            first = _Bottleneck(channels, middle, out, 2 if number else 1, norm)
            rest = [_Bottleneck(out, middle, out, 1, norm) for _ in range(depth - 1)]
            self.stages.append(nn.ModuleList([first, *rest]))
            channels = out
        self.linear = nn.Linear(channels, classes)

    def blocks(self, stage: int) -> list[_Bottleneck]:
        """Return the blocks of a stage, active or not."""
        return cast(list[_Bottleneck], list(self.stages[stage].children()))

    def forward(self, images: Images) -> Tensor:
        sizes = self.active
        x = F.relu(self.bn1(_convolved(self.conv1, images, sizes.stem)))
        for stage, (middle, out, depth) in enumerate(zip(sizes.middle, sizes.out, sizes.depth, strict=True)):
            for block in self.blocks(stage)[:depth]:
                x = block(x, middle, out)
        x = x.mean((2, 3))
        return F.linear(x, self.linear.weight[:, : x.shape[1]], self.linear.bias)


class DynamicResNet(BottleneckResNet):
    """All networks of a `Shape` at once; the largest is active at first.

    `base` is the number of channels of its first stage, 256 in the paper.
    """

    def __init__(self, base: int = 256, classes: int = 10) -> None:
        super().__init__(Sizes.of(base, Shape()), classes, _ElasticNorm)
        self.base, self.classes = base, classes

    def choose(self, shape: Shape | None = None) -> None:
        """Be this network from now on, the largest without."""
        self.active = Sizes.of(self.base, shape or Shape())

    @torch.no_grad()
    def recalibrate(self, batches: Iterable[Images]) -> None:
        """Give the active network's normalisations the mean statistics of these batches, as they see them.

        `batches` are what this network gets: normalised, if a `Classifier` holds it.
        """
        norms = [each for each in self.modules() if isinstance(each, _ElasticNorm)]
        for norm in norms:
            norm.gathered = []
        try:
            for images in batches:
                self(images)
            for norm in norms:
                if norm.gathered:  # blocks that are not active have seen nothing
                    seen = zip(*norm.gathered, strict=True)
                    means, variances = (torch.stack(each).mean(0) for each in seen)
                    assert norm.running_mean is not None
                    assert norm.running_var is not None
                    norm.running_mean[: len(means)] = means
                    norm.running_var[: len(means)] = variances
        finally:
            for norm in norms:
                norm.gathered = None

    @torch.no_grad()
    def extract(self) -> BottleneckResNet:
        """Return the active network by itself, with weights and statistics of its own."""
        made = BottleneckResNet(self.active, self.classes)
        own = self.state_dict()
        taken = {name: own[name][tuple(map(slice, value.shape))] for name, value in made.state_dict().items()}
        made.load_state_dict(taken)
        return made.train(self.training)

    @torch.no_grad()
    def sort(self) -> None:
        """Put the channels that later layers weigh most first, so that shrinking leaves them; what the
        largest network says stays what it was."""
        stages = [self.blocks(number) for number in range(len(self.stages))]
        for block in (block for stage in stages for block in stage):
            _reorder([block.conv1], [block.bn1], [block.conv2])
            _reorder([block.conv2], [block.bn2], [block.conv3])
        # what a stage puts out is read by its own later blocks, and by the first block of the next
        entries = [[stage[0].conv1, *stage[0].shortcut[:1]] for stage in stages]
        _reorder([self.conv1], [self.bn1], entries[0])
        following = [*entries[1:], [self.linear]]
        for (first, *rest), after in zip(stages, following, strict=True):
            makers = [first.conv3, *first.shortcut[:1], *(block.conv3 for block in rest)]
            norms = [first.bn3, *first.shortcut[1:], *(block.bn3 for block in rest)]
            _reorder(makers, norms, [*(block.conv1 for block in rest), *after])


def _reorder(makers: Sequence[nn.Module], norms: Sequence[nn.Module], readers: Sequence[nn.Module]) -> None:
    """Sort channels by what their readers' weights sum up to, in those who make, normalise and read them."""
    weights = [each.get_parameter("weight") for each in readers]
    importance = torch.stack([weight.abs().transpose(0, 1).flatten(1).sum(1) for weight in weights]).sum(0)
    order = importance.argsort(descending=True, stable=True)
    for maker in makers:
        weight = maker.get_parameter("weight")
        weight.copy_(weight[order])
    for norm in norms:
        for value in (*norm.parameters(), norm.get_buffer("running_mean"), norm.get_buffer("running_var")):
            value.copy_(value[order])
    for weight in weights:
        weight.copy_(weight[:, order])
