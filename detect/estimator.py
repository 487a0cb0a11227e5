"""Any detector as a scikit-learn classifier: cross-validation, grids and curves are scikit-learn's."""

import copy
from typing import Any, Self, cast

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted

from detect.calibration import THRESHOLD
from detect.detector import Detector, create
from imaging.picture import Images


class DetectorEstimator(ClassifierMixin, BaseEstimator):
    """A classifier of images, arrays or tensors [n, 3, height, width] of floats in [0, 1].

    `fit` trains the detector, if it learns, on part of the images and calibrates it on the rest; what it
    predicts is therefore calibrated. Of the two classes the greater one stands for generated. The detector
    that was given is left as it is; the fitted one is `detector_`.
    """

    def __init__(
        self,
        detector: str | Detector = "frequency",
        *,
        held_out: float = 0.25,
        error: float = 0.05,
        random_state: int = 0,
    ) -> None:
        """Keep the settings.

        Args:
            detector: a name of `detect.detector.DETECTORS`, or a detector to begin from.
            held_out: share of the images that are calibrated on; all, for a detector that learns nothing.
            error: of the bounds between which the detector is unsure.
            random_state: decides which images are held out, and the order of training.
        """
        self.detector = detector
        self.held_out = held_out
        self.error = error
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train and calibrate.

        Raises:
            ValueError: X are no images in [0, 1], y has not two classes, or too few are left to calibrate on.
        """
        images, labels = as_images(X), np.asarray(y)
        self.classes_ = np.unique(labels)
        if len(self.classes_) != 2:
            raise ValueError(f"a detector tells two classes apart; got {len(self.classes_)}")
        if len(labels) != len(images):
            raise ValueError(f"got {len(images)} images and {len(labels)} labels")
        generated = torch.from_numpy((labels == self.classes_[1]).astype(np.int64))
        made = create(self.detector) if isinstance(self.detector, str) else copy.deepcopy(self.detector)
        held_out = np.arange(len(images))
        if made.learns:
            train, held_out = train_test_split(
                held_out, test_size=self.held_out, random_state=self.random_state, stratify=generated.numpy()
            )
            generator = torch.Generator().manual_seed(self.random_state)
            made.learn(images[train], generated[train], generator=generator)
            made.sides = (min(images.shape[-2:]), max(images.shape[-2:]))
        chosen = torch.from_numpy(held_out)
        made.calibrate(images[chosen], generated[chosen], data="held out by fit", error=self.error)
        self.detector_ = made
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """Return calibrated logits, positive for the class that stands for generated."""
        check_is_fitted(self)
        calibration = self.detector_.calibrated()
        return calibration.slope * self.detector_.scores(as_images(X)).numpy() + calibration.bias

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n 2"]:
        """Return calibrated probabilities of both classes."""
        check_is_fitted(self)
        return self.detector_.predict_proba(as_images(X)).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of each image; a threshold of calibrated probabilities decides."""
        generated = self.predict_proba(X)[:, 1] >= THRESHOLD
        return self.classes_[generated.astype(int)]

    def __sklearn_tags__(self) -> Any:
        tags = cast(Any, super()).__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_class = False
        return tags


def as_images(given: Any) -> Images:
    """Return arrays or tensors as images.

    Raises ValueError for another shape, another kind of numbers, or values outside [0, 1].
    """
    images = torch.as_tensor(given)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images of shape [n, 3, height, width]; got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"expected images as floats in [0, 1]; got {images.dtype}: divide bytes by 255")
    if not len(images) or not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("expected one or more images with values in [0, 1]")
    return images.float()
