"""Detectors that are networks, and what one step of their training is, whoever takes the steps."""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from detect.calibration import Logits
from detect.detector import Detector, DetectorError, Labels
from imaging.picture import Images

Features = Float[Tensor, "batch channels height width"]
Lessons = Float[Tensor, "batch more_channels height width"]


class NetworkDetector(Detector):
    """A detector whose weights are learned by gradient steps on labelled images.

    It answers from `features` of images, which depend on no weight that is learned. `lessons` is all that
    training needs of an image, computed once.
    """

    def __init__(self, *, epochs: int, batch_size: int, learning_rate: float) -> None:
        super().__init__()
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate

    def settings(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
        }

    @abstractmethod
    def answer(self, features: Features) -> Logits:
        """Return one logit for each image, by its features."""

    def features(self, images: Images) -> Features:
        """Return what the network sees of images, without a graph; the images unless overridden."""
        return images

    def forward(self, images: Images) -> Logits:
        return self.answer(self.features(images))

    def lessons(self, images: Images) -> Lessons:
        """Return what a step of training needs of images: features, and what is taught beside labels."""
        return self.features(images)

    def augmented(self, lessons: Lessons, generator: torch.Generator | None = None) -> Lessons:
        """Return lessons as a step of training varies them; unchanged unless overridden."""
        return lessons

    def losses(self, lessons: Lessons, labels: Labels) -> dict[str, Tensor]:
        """Return the terms of the loss by name; their sum is descended."""
        return self.classified(self.answer(lessons), labels)

    def classified(self, logits: Logits, labels: Labels) -> dict[str, Tensor]:
        """Return the binary cross-entropy of logits."""
        return {"classes": binary_cross_entropy_with_logits(logits, labels.to(logits))}

    def learn(self, images: Images, labels: Labels, *, generator: torch.Generator | None = None) -> None:
        """Train with Adam for `epochs`; `generator` draws the order of images and how they are varied.

        Raises DetectorError when the loss is not finite.
        """
        lessons = torch.cat([self.lessons(some) for some in images.split(64)])
        adam = torch.optim.Adam(self.learned(), lr=self.learning_rate)
        self.train()
        for _ in range(self.epochs):
            order = torch.randperm(len(images), generator=generator)
            for some in order.split(self.batch_size):
                if len(some) > 1:  # batch statistics of one picture have no variance
                    terms = self.losses(self.augmented(lessons[some], generator), labels[some])
                    loss = self.total(terms)
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
        self.eval()

    def learned(self) -> list[torch.nn.Parameter]:
        """Return the weights that training changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the sum of the terms of a loss.

        Raises DetectorError where one is not finite, by its name.
        """
        for name, term in terms.items():
            if not torch.isfinite(term):
                raise DetectorError(
                    f"training of {self.kind} gave a loss ({name}) that is not finite: "
                    "lower the learning rate"
                )
        return torch.stack([*terms.values()]).sum()


def mirrored(lessons: Lessons, generator: torch.Generator | None = None) -> Lessons:
    """Return half of the lessons mirrored left to right, by chance, each with all of its maps."""
    turned = torch.rand(len(lessons), 1, 1, 1, generator=generator) < 0.5
    return torch.where(turned.to(lessons.device), lessons.flip(-1), lessons)
