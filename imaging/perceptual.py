"""LPIPS: how far two images are apart for a person, as a network that saw photographs reckons it.

The weights lie in a file that a person names; nothing is downloaded.
"""

from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imaging.metrics import Scores
from imaging.picture import Images

SMALLEST = 31
"""The shortest side of which AlexNet's strides leave something."""

_CHANNELS = (64, 192, 384, 256, 256)
# what the backbone was trained on, in [-1, 1]
_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """LPIPS on AlexNet, version 0.1 (Zhang et al., 2018, CVPR, arXiv 1801.03924); differentiable, frozen.

    After each of the five convolutions the features of both images are scaled to unit length over channels;
    the squares of their differences are weighed by channel, averaged over places, and summed.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        """Build the network with random weights; see `from_file`."""
        super().__init__()
        one, two, three, four, five = _CHANNELS
        self.features = nn.Sequential(
            *(nn.Conv2d(3, one, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(one, two, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(two, three, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(three, four, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(four, five, 3, padding=1), nn.ReLU()),
        )
        for number, channels in enumerate(_CHANNELS):
            self.add_module(f"lin{number}", nn.Conv2d(channels, 1, 1, bias=False))
        for name, values in (("mean", _MEAN), ("deviation", _DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Load weights from safetensors, in float32.

        Their names are those of torchvision's AlexNet, `features.0.weight` and so on, and `lin0.weight` to
        `lin4.weight` for the weights of channels.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there are no LPIPS weights {path}")
        made = cls()
        try:
            state = {name: tensor.float() for name, tensor in load_file(path).items()}
            made.load_state_dict(state)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"{path} is no safetensors file of LPIPS on AlexNet (features.0.weight …, lin0.weight …)"
            ) from error
        return made

    def forward(self, images: Images, reference: Images) -> Scores:
        """Return the distance of each image [batch, 3, height, width] in [0, 1] from its reference; [batch].

        Raises ValueError for unequal shapes, or a side shorter than `SMALLEST`.
        """
        if images.shape != reference.shape or min(images.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"LPIPS compares images of equal shape with sides of {SMALLEST} pixels or more; "
                f"got {tuple(images.shape)} and {tuple(reference.shape)}"
            )
        distance = images.new_zeros(len(images))
        x, y = ((2 * each - 1 - self.mean) / self.deviation for each in (images, reference))
        stage = 0
        for layer in self.features:
            x, y = layer(x), layer(y)
            if isinstance(layer, nn.ReLU):
                apart = self.get_submodule(f"lin{stage}")((_unit(x) - _unit(y)).square())
                distance = distance + apart.mean((1, 2, 3))
                stage += 1
        return distance


def _unit(features: Tensor) -> Tensor:
    # inside the root, where features without length have a gradient too
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()
