"""CNNDetection: a ResNet on the picture itself, trained on blurred and recompressed ones.

Wang et al., 2020, CVPR, arXiv 1912.11035: a network that sees generators' pictures through random blur and
JPEG during training carries over to generators that it has not seen.
"""

from collections.abc import Mapping
from typing import Any

import torch

from detect.calibration import Logits
from detect.network import Features, Lessons, NetworkDetector, mirrored
from detect.resnet import ResNet
from imaging.picture import Images
from imaging.transforms import gaussian_blur, jpeg

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MOST_BLUR, _QUALITIES = 3.0, (30, 100)
_LEAST_BLUR = 0.1
"""Below which a blur of so many pixels changes nothing."""


class CnnDetector(NetworkDetector):
    """A ResNet on normalised pixels, augmented by mirroring, blur and JPEG.

    Departures from the authors' recipe: one JPEG encoder and not two, drawn half colours; no crop, as
    pictures of one size are expected; trained on whatever it is given and not on ProGAN.
    """

    kind = "cnndetection"

    def __init__(
        self,
        *,
        network: Mapping[str, Any] | None = None,
        probability: float = 0.5,
        epochs: int = 10,
        batch_size: int = 64,
        learning_rate: float = 1e-4,
    ) -> None:
        """Build an untrained detector.

        Args:
            network: settings of `detect.resnet.ResNet`; a ResNet-50 without.
            probability: that a picture is blurred, by up to 3 pixels, and independently that it is saved as
                JPEG at quality 30 to 100; the authors have 0.5, and 0.1.
            epochs: of `learn`, as `batch_size` and `learning_rate`, which is Adam's.

        Raises:
            ValueError: the probability is outside [0, 1].
        """
        super().__init__(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
        if not 0 <= probability <= 1:
            raise ValueError(f"a probability lies in [0, 1]; got {probability:g}")
        self._network, self._probability = dict(network or {}), probability
        self.network = ResNet(3, **self._network)

    def settings(self) -> dict[str, Any]:
        return {"network": self._network, "probability": self._probability, **super().settings()}

    def answer(self, features: Features) -> Logits:
        mean, std = (features.new_tensor(each).view(1, 3, 1, 1) for each in (_MEAN, _STD))
        return self.network((features - mean) / std)

    @torch.no_grad()
    def augmented(self, lessons: Lessons, generator: torch.Generator | None = None) -> Lessons:
        turned = mirrored(lessons, generator)
        drawn = torch.rand(len(lessons), 4, generator=generator).tolist()
        handled = [self._handled(one[None], *draws) for one, draws in zip(turned, drawn, strict=True)]
        return torch.cat(handled)

    def _handled(self, image: Images, blurs: float, sigma: float, saves: float, quality: float) -> Images:
        """Blur one image and save it as JPEG, each by chance; arguments are draws from [0, 1)."""
        if blurs < self._probability and sigma * _MOST_BLUR > _LEAST_BLUR:
            reach = min(image.shape[-2:]) - 1  # a border is mirrored at most once
            strength = sigma * _MOST_BLUR
            taps = min(2 * int(3 * strength + 1) + 1, 2 * reach + 1)
            image = gaussian_blur(image, strength, taps)
        if saves < self._probability:
            low, high = _QUALITIES
            image = jpeg(image, low + int(quality * (high - low + 1)))
        return image
