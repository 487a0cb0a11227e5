"""NPR: what is left of a picture when every two by two pixels are replaced by one of them.

Up-sampling layers of generators leave neighbouring pixels that depend on one another (Tan et al., 2024, CVPR,
arXiv 2312.10461). A small network looks at that residual alone.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from detect.calibration import Logits
from detect.detector import Detector, DetectorError, Labels
from imaging.picture import Images


def neighbour_residual(images: Images) -> Images:
    """Return images minus their own copies at half size and back, nearest; an odd last row or column is cut.

    Of each two by two pixels the upper left one becomes 0, the others their difference from it.
    """
    height, width = (side - side % 2 for side in images.shape[-2:])
    even = images[..., :height, :width]
    return even - interpolate(even[..., ::2, ::2], scale_factor=2, mode="nearest")


class NprDetector(Detector):
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
        super().__init__()
        # imported here: torchvision takes seconds and nothing else in this package needs it
        from torchvision.models.resnet import Bottleneck, ResNet

        self._settings: dict[str, Any] = {
            "blocks": tuple(blocks),
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
        }
        trunk = ResNet(Bottleneck, [*blocks, 1, 1])
        self.network = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
            *(trunk.bn1, trunk.relu, trunk.maxpool, trunk.layer1, trunk.layer2),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1)),
        )

    def settings(self) -> dict[str, Any]:
        return self._settings

    def forward(self, images: Images) -> Logits:
        # two thirds, as in the authors' code; the pixels themselves are not normalised here
        return self.network(neighbour_residual(images) * 2 / 3)[:, 0]

    def learn(self, images: Images, labels: Labels, *, generator: torch.Generator | None = None) -> None:
        """Train with Adam on binary cross-entropy; `generator` draws the order of images.

        Raises DetectorError when the loss is not finite.
        """
        batch_size = self._settings["batch_size"]
        adam = torch.optim.Adam(self.parameters(), lr=self._settings["learning_rate"])
        self.train()
        for _ in range(self._settings["epochs"]):
            order = torch.randperm(len(images), generator=generator)
            for some in order.split(batch_size):
                if len(some) > 1:  # batch statistics of one picture have no variance
                    self._step(adam, images[some], labels[some])
        self.eval()

    def _step(self, adam: torch.optim.Adam, images: Images, labels: Tensor) -> None:
        loss = binary_cross_entropy_with_logits(self(images), labels.to(images.dtype))
        if not torch.isfinite(loss):
            raise DetectorError("training of npr gave a loss that is not finite: lower the learning rate")
        adam.zero_grad()
        loss.backward()
        adam.step()
