"""Detectors that are a logistic regression on statistics of pictures."""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from detect.calibration import Logits
from detect.detector import Detector, Labels
from imaging.picture import Images

Statistics = Float[Tensor, "batch statistics"]


class LinearDetector(Detector):
    """Logistic regression on `statistics` of images, each brought to mean 0 and deviation 1."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, count: int, *, regularisation: float) -> None:
        """Begin with `count` statistics that say nothing; `regularisation` is scikit-learn's C."""
        super().__init__()
        self._regularisation = regularisation
        for name, value in (("mean", 0.0), ("scale", 1.0), ("weight", 0.0)):
            self.register_buffer(name, torch.full((count,), value))
        self.register_buffer("bias", torch.zeros(()))

    def settings(self) -> dict[str, Any]:
        return {"regularisation": self._regularisation}

    @abstractmethod
    def statistics(self, images: Images) -> Statistics:
        """Return the statistics of images, without a graph or with one."""

    def forward(self, images: Images) -> Logits:
        return self.judge_statistics(self.statistics(images))

    def judge_statistics(self, statistics: Statistics) -> Logits:
        """Return the logits of images by their `statistics`."""
        return self.parts(statistics).sum(1) + self.bias

    def parts(self, statistics: Statistics) -> Statistics:
        """Return what each statistic adds to the logit."""
        return (statistics - self.mean) / self.scale * self.weight

    def learn(self, images: Images, labels: Labels, *, generator: torch.Generator | None = None) -> None:
        """Fit to images of one size, with 1 for generated; nothing is drawn.

        Raises ValueError unless there are images of both kinds.
        """
        self.learn_statistics(torch.cat([self.statistics(some) for some in images.split(256)]), labels)

    def learn_statistics(self, statistics: Statistics, labels: Labels) -> None:
        """Fit to the `statistics` of images, which may have been of any sizes.

        Raises ValueError unless there are images of both kinds.
        """
        from sklearn.linear_model import LogisticRegression

        statistics = statistics.double()
        self.mean.copy_(statistics.mean(0))
        self.scale.copy_(statistics.std(0, correction=0).clamp(min=1e-6))
        standard = ((statistics - self.mean) / self.scale).cpu().numpy()
        model = LogisticRegression(C=self._regularisation, max_iter=1000)
        model.fit(standard, labels.cpu().numpy())
        self.weight.copy_(torch.from_numpy(model.coef_[0]))
        self.bias.copy_(torch.tensor(model.intercept_[0]))
