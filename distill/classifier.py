"""Students and teachers: classifiers with their normalisation inside, in one file each.

resnet20, resnet56, …   thin ResNets of 6n + 2 layers        resnet18     preact18
wrn-34-10, …            wide ResNets of depth and width      mobilenet-v2
dynamic-256, …          a network that holds many, see `distill.dynamic`; behind a colon one of them

Two small classifiers of CIFAR-10 ship with the package: `load("cifar10-natural")`, `load("cifar10-robust")`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from distill.dynamic import DynamicResNet
from distill.networks import Images, Logits, build

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
SHIPPED = Path(__file__).parent / "builtin"
CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


class _ContiguousGradient(torch.autograd.Function):
    """The identity, whose gradient is contiguous: attacks of other libraries call `view` on it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Images) -> Images:
        return images.view_as(images)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Images], output: Images) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Images) -> Images:
        return gradients[0].contiguous()

    @staticmethod
    def jvp(ctx: Any, *tangents: Images) -> Images:
        return tangents[0].view_as(tangents[0])


class Normalised(nn.Module):
    """A network behind its normalisation, so that attacks and purifiers see images in [0, 1].

    The weights lie channels last, in which convolutions are up to 1.4 times as fast.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Images) -> Logits:
        return self.network((_ContiguousGradient.apply(images) - self.mean) / self.std)


class Classifier(Normalised):
    """A network by its name, see this module, with random weights.

    Raises ValueError for a name that there is not.
    """

    def __init__(
        self,
        architecture: str,
        classes: int = 10,
        mean: tuple[float, float, float] = CIFAR10[0],
        std: tuple[float, float, float] = CIFAR10[1],
    ) -> None:
        super().__init__(build(architecture, classes), mean, std)
        self.config = {
            "architecture": architecture,
            "classes": classes,
            "mean": list(mean),
            "std": list(std),
        }

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write the weights, with what it takes to build the network again, as safetensors; `half` rounds
        them to float16 for a file of half the size."""
        state = {
            name: (value.half() if half and value.is_floating_point() else value).contiguous()
            for name, value in self.state_dict().items()
        }
        save_file(state, path, metadata={"classifier": json.dumps(self.config)})


class Grown(Classifier):
    """A dynamic classifier that `Classifier.save` wrote, to be trained further: its channels are sorted by
    importance, so that smaller networks begin with the best.

    Raises FileNotFoundError if there is no such file, and ValueError if it holds another network.
    """

    def __init__(self, path: str) -> None:
        saved = load(path)
        config: dict[str, Any] = saved.config
        super().__init__(**config)
        self.load_state_dict(saved.state_dict())
        if not isinstance(self.network, DynamicResNet):
            raise ValueError(f"{path} holds {self.config['architecture']}, which is no network of many")
        self.network.sort()


def recalibrated(network: nn.Module, batches: Iterable[Images]) -> None:
    """Give networks that hold many, within a network, the statistics of batches of images in [0, 1], of which
    they keep none in training."""
    for part in network.modules():
        if isinstance(part, Normalised) and isinstance(part.network, DynamicResNet):
            part.network.recalibrate((images - part.mean) / part.std for images in batches)


class Frozen(nn.Module):
    """A classifier that neither learns nor leaves evaluation mode."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Images) -> Logits:
        return self.classifier(images)


class Teacher(Frozen):
    """A classifier that `Classifier.save` wrote, or one that ships, for configuration files.

    Raises FileNotFoundError if there is no such file, and ValueError if it does not say what it holds.
    """

    def __init__(self, path: str) -> None:
        super().__init__(load(path))


def shipped() -> list[str]:
    """Return the names of the classifiers that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.safetensors"))


def located(path: str | Path) -> Path:
    """Return where the weights of a classifier lie that ships, by its name, or that are in a file.

    Raises FileNotFoundError, naming those that ship, if they lie nowhere.
    """
    path = SHIPPED / f"{path}.safetensors" if path in shipped() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights {path}; {' and '.join(shipped())} come with Vernis")
    return path


def load(path: str | Path) -> Classifier:
    """Return a classifier that `Classifier.save` wrote, or one that ships, frozen and in evaluation mode.

    Raises FileNotFoundError if there is no such file, and ValueError if it does not say what it holds.
    """
    path = located(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            described = (file.metadata() or {}).get("classifier")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if described is None:
        raise ValueError(f"{path} does not say which network it holds: write it with Classifier.save")
    classifier = Classifier(**json.loads(described))
    classifier.load_state_dict(state)
    return classifier.eval().requires_grad_(False)


def describes_itself(path: str | Path) -> bool:
    """Whether a safetensors file is one that `load` reads."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return "classifier" in (file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file; write pickled weights anew, by torch.load with "
            "weights_only=True and safetensors.torch.save_file"
        ) from error
