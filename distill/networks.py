"""The networks of adversarial training for 32 pixel images, not normalised: see `distill.classifier`."""

import re
from collections.abc import Callable
from difflib import get_close_matches

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from distill.dynamic import BottleneckResNet, DynamicResNet, Shape, Sizes

Images = Float[Tensor, "batch 3 height width"]
Logits = Float[Tensor, "batch classes"]


class _ThinBlock(nn.Module):
    """Two convolutions and a shortcut without parameters: every second pixel, new channels zero."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.added = stride, out - channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(short, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2)))


class CifarResNet(nn.Module):
    """The ResNet of 6n + 2 layers for 32 pixel images (He et al., 2016, CVPR, section 4.2).

    Raises ValueError for another number of layers.
    """

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        blocks, left = divmod(depth - 2, 6)
        if left or blocks < 1:
            raise ValueError(f"a thin ResNet has 6n + 2 layers, as 20 or 56; got {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(_ThinBlock, 16, 16, blocks, 1)
        self.layer2 = _stage(_ThinBlock, 16, 32, blocks, 2)
        self.layer3 = _stage(_ThinBlock, 32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Images) -> Logits:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class _BasicBlock(nn.Module):
    """Two convolutions and a shortcut, convolved where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = _projection(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2016, CVPR) with a stem for 32 pixel images: stride 1 and no pooling."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layers = nn.Sequential(
            _stage(_BasicBlock, 64, 64, 2, 1),
            _stage(_BasicBlock, 64, 128, 2, 2),
            _stage(_BasicBlock, 128, 256, 2, 2),
            _stage(_BasicBlock, 256, 512, 2, 2),
        )
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Images) -> Logits:
        return self.linear(self.layers(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


class _PreActivated(nn.Module):
    """Normalisation and rectification before each convolution; the shortcut is taken after the first."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        changes = stride != 1 or channels != out
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + short


class PreActResNet18(nn.Module):
    """ResNet-18 with pre-activation (He et al., ECCV 2016, arXiv 1603.05027) for 32 pixel images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.layers = nn.Sequential(
            _stage(_PreActivated, 64, 64, 2, 1),
            _stage(_PreActivated, 64, 128, 2, 2),
            _stage(_PreActivated, 128, 256, 2, 2),
            _stage(_PreActivated, 256, 512, 2, 2),
        )
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Images) -> Logits:
        return self.linear(F.relu(self.bn(self.layers(self.conv1(x)))).mean((2, 3)))


class WideResNet(nn.Module):
    """A wide ResNet of 6n + 4 layers (Zagoruyko and Komodakis, BMVC 2016, arXiv 1605.07146).

    Raises ValueError for another number of layers.
    """

    def __init__(self, depth: int, width: int, classes: int = 10) -> None:
        super().__init__()
        blocks, left = divmod(depth - 4, 6)
        if left or blocks < 1:
            raise ValueError(f"a wide ResNet has 6n + 4 layers, as 28 or 34; got {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.layers = nn.Sequential(
            _stage(_PreActivated, 16, 16 * width, blocks, 1),
            _stage(_PreActivated, 16 * width, 32 * width, blocks, 2),
            _stage(_PreActivated, 32 * width, 64 * width, blocks, 2),
        )
        self.bn = nn.BatchNorm2d(64 * width)
        self.linear = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Images) -> Logits:
        return self.linear(F.relu(self.bn(self.layers(self.conv1(x)))).mean((2, 3)))


class _Inverted(nn.Module):
    """Wide, convolved channel by channel, narrow again; a shortcut wherever the stride is 1."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = _projection(channels, out, 1) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        return y if self.shortcut is None else y + self.shortcut(x)


class MobileNetV2(nn.Module):
    """MobileNet-V2 (Sandler et al., CVPR 2018, arXiv 1801.04381) as distillation papers use it at 32 pixels:
    smaller strides, ReLU without a ceiling, no dropout."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        layers: list[nn.Module] = []
        channels = 32
        for expansion, out, count, stride in MOBILE_STAGES:
            for number in range(count):
                layers.append(_Inverted(channels, out, 1 if number else stride, expansion))
                channels = out
        self.layers = nn.Sequential(*layers)
        self.conv2 = nn.Conv2d(320, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, classes)

    def forward(self, x: Images) -> Logits:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


MOBILE_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and stride of the first block."""

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet20": lambda classes: CifarResNet(20, classes),
    "resnet56": lambda classes: CifarResNet(56, classes),
    "resnet18": ResNet18,
    "preact18": PreActResNet18,
    "mobilenet-v2": MobileNetV2,
}


def build(architecture: str, classes: int) -> nn.Module:
    """Return the network of this name, see this module, without normalisation."""
    if wide := re.fullmatch(r"wrn-(\d+)-(\d+)", architecture):
        return WideResNet(int(wide[1]), int(wide[2]), classes)
    if architecture in NETWORKS:
        return NETWORKS[architecture](classes)
    if thin := re.fullmatch(r"resnet(\d+)", architecture):
        return CifarResNet(int(thin[1]), classes)
    if dynamic := re.fullmatch(r"dynamic-(\d+)(?::(.+))?", architecture):
        base, shape = int(dynamic[1]), dynamic[2]
        if shape is None:
            return DynamicResNet(base, classes)
        return BottleneckResNet(Sizes.of(base, Shape.parse(shape)), classes)
    near = get_close_matches(architecture, [*NETWORKS, "resnet20", "resnet56", "wrn-34-10"], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join([*NETWORKS, "wrn-D-K", "dynamic-C"])
    raise ValueError(f"unknown network {architecture!r}; {hint}available: {known}")


def _stage(
    block: Callable[[int, int, int], nn.Module], channels: int, out: int, count: int, stride: int
) -> nn.Sequential:
    return nn.Sequential(block(channels, out, stride), *(block(out, out, 1) for _ in range(count - 1)))


def _projection(channels: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and channels == out:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
