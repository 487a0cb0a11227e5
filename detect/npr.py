"""NPR: what is left of a picture when every two by two pixels are replaced by one of them.

Up-sampling layers of generators leave neighbouring pixels that depend on one another (Tan et al., 2024, CVPR,
arXiv 2312.10461). A small network looks at that residual alone.
"""

from typing import Any

from torch import nn
from torch.nn.functional import interpolate

from detect.calibration import Logits
from detect.network import Features, NetworkDetector
from imaging.picture import Images


def neighbour_residual(images: Images) -> Images:
    """Return images minus their own copies at half size and back, nearest; an odd last row or column is cut.

    Of each two by two pixels the upper left one becomes 0, the others their difference from it.
    """
    height, width = (side - side % 2 for side in images.shape[-2:])
    even = images[..., :height, :width]
    return even - interpolate(even[..., ::2, ::2], scale_factor=2, mode="nearest")


class NprDetector(NetworkDetector):
    """The first half of a ResNet-50 on `neighbour_residual`, trained from scratch."""

    kind = "npr"

    def __init__(
        self,
        *,
        blocks: tuple[int, int] = (3, 4),
        epochs: int = 10,
        batch_size: int = 32,
        learning_rate: float = 2e-4,
    ) -> None:
        """Build an untrained network.

        Args:
            blocks: bottlenecks in each of its two stages.
            epochs: of `learn`; the authors' command has 50.
            batch_size: of `learn`.
            learning_rate: of Adam in `learn`.
        """
        super().__init__(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
        # imported here: torchvision takes seconds and nothing else in this package needs it
        from torchvision.models.resnet import Bottleneck, ResNet

        self._blocks = tuple(blocks)
        trunk = ResNet(Bottleneck, [*blocks, 1, 1])
        self.network = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
            *(trunk.bn1, trunk.relu, trunk.maxpool, trunk.layer1, trunk.layer2),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1)),
        )

    def settings(self) -> dict[str, Any]:
        return {"blocks": self._blocks, **super().settings()}

    def answer(self, features: Features) -> Logits:
        # two thirds, as in the authors' code; the pixels themselves are not normalised here
        return self.network(neighbour_residual(features) * 2 / 3)[:, 0]
