"""What the spectrum alone gives away: statistics of block frequencies, and a linear classifier of them.

It is no detector of generators. It is the row that every other detector has to beat: resampling and
compression leave such traces, and on some published sets they answer nine questions of ten.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from detect.calibration import Logits
from detect.detector import Detector, Labels
from imaging.blocks import dct, to_blocks
from imaging.picture import Images

Features = Float[Tensor, "batch features"]

COUNT = 387
"""Three planes of 64 mean magnitudes and 64 deviations, and each plane's share of coefficients that are not
nought."""

_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_NOUGHT = 1.0
"""Coefficients below this, in 1/255, are rounding."""
_FLOOR = 1e-2
"""Below every magnitude, so that logarithms are finite."""


def block_statistics(images: Images) -> Features:
    """Return statistics of the 8 x 8 block frequencies of luma and colours: [batch, COUNT].

    First, for each plane, the logarithms of the mean magnitudes of the 64 frequencies, row by row, then those
    of their standard deviations, over the picture's blocks and in units of 1/255; at the end the three shares
    of coefficients that are not nought. It takes decoded pixels, and so any format.
    """
    planes = torch.einsum("oc,nchw->nohw", images.new_tensor(_YCC), images * 255)
    coefficients = dct(to_blocks(planes)).flatten(2, 3).flatten(3)  # [batch, 3, blocks, 64]
    magnitude = (coefficients.abs().mean(2) + _FLOOR).log()
    deviation = (coefficients.std(2, correction=0) + _FLOOR).log()
    filled = (coefficients.abs() >= _NOUGHT).float().mean((2, 3))
    return torch.cat([torch.cat([magnitude, deviation], 2).flatten(1), filled], 1)


def names_of_statistics() -> list[str]:
    """Return what each of the `COUNT` statistics is, in words."""
    planes = ("brightness", "blue-yellow", "red-green")
    kinds = ("strength", "spread")
    named = [
        f"{kind} of {plane} at vertical {row}, horizontal {column} of 8"
        for plane in planes
        for kind in kinds
        for row in range(8)
        for column in range(8)
    ]
    return [*named, *(f"share of {plane} frequencies in use" for plane in planes)]


class FrequencyDetector(Detector):
    """Logistic regression on `block_statistics`."""

    kind = "frequency"
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, *, regularisation: float = 1.0) -> None:
        """`regularisation` is the inverse strength of scikit-learn's penalty, its C."""
        super().__init__()
        self._regularisation = regularisation
        for name, value in (("mean", 0.0), ("scale", 1.0), ("weight", 0.0)):
            self.register_buffer(name, torch.full((COUNT,), value))
        self.register_buffer("bias", torch.zeros(()))

    def settings(self) -> dict[str, Any]:
        return {"regularisation": self._regularisation}

    def forward(self, images: Images) -> Logits:
        return self.judge_statistics(block_statistics(images))

    def judge_statistics(self, features: Features) -> Logits:
        """Return the logits of images by their `block_statistics`."""
        return self._parts(features).sum(1) + self.bias

    def _parts(self, features: Features) -> Features:
        """What each statistic adds to the logit."""
        return (features - self.mean) / self.scale * self.weight

    def learn(self, images: Images, labels: Labels, *, generator: torch.Generator | None = None) -> None:
        """Fit to images of one size, with 1 for generated; nothing is drawn.

        Raises ValueError unless there are images of both kinds.
        """
        self.learn_statistics(torch.cat([block_statistics(some) for some in images.split(256)]), labels)

    def learn_statistics(self, features: Features, labels: Labels) -> None:
        """Fit to the `block_statistics` of images, which may have been of any sizes.

        Raises ValueError unless there are images of both kinds.
        """
        from sklearn.linear_model import LogisticRegression

        features = features.double()
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0, correction=0).clamp(min=1e-6))
        standard = ((features - self.mean) / self.scale).cpu().numpy()
        model = LogisticRegression(C=self._regularisation, max_iter=1000)
        model.fit(standard, labels.cpu().numpy())
        self.weight.copy_(torch.from_numpy(model.coef_[0]))
        self.bias.copy_(torch.tensor(model.intercept_[0]))

    def explain(self, images: Images) -> list[str]:
        """Return the three statistics of one image that speak loudest."""
        parts = self._parts(block_statistics(images[:1]))[0]
        names = names_of_statistics()
        loudest = parts.abs().topk(3).indices.tolist()
        return [
            f"{names[index]}: {abs(float(parts[index])):.2f} towards "
            f"{'generated' if parts[index] > 0 else 'real'}"
            for index in loudest
        ]
