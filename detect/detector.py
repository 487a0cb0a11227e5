"""One interface for everything that scores pictures, and how a detector is kept in a folder.

`weights.safetensors` holds what was learned, `detector.json` what it is, what it was trained on and its
calibration. Nothing in either can run code.
"""

import hashlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detect.calibration import Calibration, Logits, calibrate
from detect.equalise import Equaliser
from imaging.picture import Images
from imaging.whole import whole, write_whole

Labels = Int[Tensor, " batch"]
Pairs = Float[Tensor, "batch 2"]
Heat = Float[Tensor, "batch height width"]

DETECTORS: dict[str, str] = {
    "clip": "detect.clip:ClipDetector",
    "cnndetection": "detect.cnndetection:CnnDetector",
    "dire": "detect.distildire:DireDetector",
    "distildire": "detect.distildire:DistilDireDetector",
    "frequency": "detect.frequency:FrequencyDetector",
    "npr": "detect.npr:NprDetector",
    "reconstruction": "detect.reconstruction:ReconstructionDetector",
}
"""`module:Class` by name."""

_DESCRIPTION, _WEIGHTS = "detector.json", "weights.safetensors"


class DetectorError(ValueError):
    """A folder that holds no detector, a name of none, or one that cannot answer."""


class Detector(nn.Module, ABC):
    """Scores images: `forward` returns one logit for each, positive where it looks generated.

    A picture's logit never depends on its neighbours. Concrete classes have keyword-only settings that JSON
    can write, and return them from `settings`.
    """

    kind: ClassVar[str]
    """Its name in `DETECTORS`."""
    learns: ClassVar[bool] = True
    """Whether it has to learn before it can answer."""
    has_heatmap: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.calibration: Calibration | None = None
        self.trained_on = ""
        """What it has seen, in words; empty where it has learned nothing."""
        self.sides: tuple[int, int] | None = None
        """Shortest and longest side of the pictures that it was fitted to; None where any size will do."""
        self.equaliser = Equaliser(level="raw")
        """What is done to the pixels of a file before this detector sees them, in training and afterwards."""

    @abstractmethod
    def forward(self, images: Images) -> Logits:
        """Return one logit for each image, positive where it looks generated."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what the class is constructed with."""

    def learn(self, images: Images, labels: Labels, *, generator: torch.Generator | None = None) -> None:
        """Learn from images, 1 standing for generated; nothing happens where there is nothing to learn."""

    def heatmap(self, images: Images) -> Heat:
        """Return where images look generated, higher for more, in no unit.

        Raises DetectorError for a detector that does not look at places.
        """
        raise DetectorError(f"{self.kind} does not look at places and has no heatmap")

    def explain(self, images: Images) -> list[str]:
        """Return sentences about what speaks for the answer on one image; none where there are none."""
        return []

    @property
    def identity(self) -> str:
        """The kind, and eight hexadecimal digits that change with settings and weights."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        for name, tensor in sorted(self.weights().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return f"{self.kind}-{digest.hexdigest()[:8]}"

    def weights(self) -> dict[str, Tensor]:
        """Return what is kept in the file of weights."""
        return self.state_dict()

    @torch.no_grad()
    def scores(self, images: Images, *, batch_size: int = 64) -> Logits:
        """Return the logits of many images on the CPU, batch by batch, in evaluation."""
        was_training = self.training
        self.eval()
        try:
            return torch.cat([self(some).float().cpu() for some in images.split(batch_size)])
        finally:
            self.train(was_training)

    def calibrated(self) -> Calibration:
        """Return the calibration.

        Raises DetectorError where there is none.
        """
        if self.calibration is None:
            raise DetectorError(f"{self.kind} is not calibrated: fit it to held-out pictures first")
        return self.calibration

    def calibrate(self, images: Images, labels: Labels, *, data: str, error: float = 0.05) -> Logits:
        """Fit the calibration to images that were not learned from, and return their logits; see
        `detect.calibration.calibrate`."""
        logits = self.scores(images)
        self.calibration = calibrate(logits.double().numpy(), labels.cpu().numpy(), data=data, error=error)
        return logits

    def predict_proba(self, images: Images) -> Pairs:
        """Return calibrated probabilities of real and generated, on the CPU.

        Raises DetectorError where it is not calibrated.
        """
        generated = self.calibrated().probabilities(self.scores(images))
        return torch.stack([1 - generated, generated], dim=1)

    def save(self, folder: str | Path) -> None:
        """Keep the detector in a folder, which is made; a file that was there stays until its successor is
        whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights().items()}
        with whole(folder / _WEIGHTS) as partial:
            save_file(tensors, partial)
        description = {
            "kind": self.kind,
            "settings": self.settings(),
            "trained_on": self.trained_on,
            "sides": self.sides,
            "equaliser": asdict(self.equaliser),
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }
        write_whole(folder / _DESCRIPTION, json.dumps(description, indent=2) + "\n")


def create(name: str, **settings: Any) -> Detector:
    """Build an untrained detector by its name.

    Raises DetectorError for an unknown name or a setting that it does not have.
    """
    if name not in DETECTORS:
        raise DetectorError(f"unknown detector {name!r}; available: {', '.join(DETECTORS)}")
    module, _, kind = DETECTORS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), kind)(**settings)
    except TypeError as error:
        raise DetectorError(f"{name} cannot be made with {settings}: {error}") from error


def load(folder: str | Path) -> Detector:
    """Return the detector that a folder holds, in evaluation.

    Raises DetectorError for a folder that holds none, a damaged one, or one whose parts do not fit.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / _DESCRIPTION).read_text())
        tensors = load_file(folder / _WEIGHTS)
    except OSError as error:
        raise DetectorError(
            f"{str(folder)!r} holds no detector: {_DESCRIPTION} or {_WEIGHTS} cannot be read"
        ) from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise DetectorError(f"the detector in {str(folder)!r} is damaged: {error}") from error
    try:
        return _built(description, tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DetectorError(f"the detector in {str(folder)!r} is damaged: {error}") from error


def _built(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Detector:
    detector = create(description["kind"], **description["settings"])
    detector.load_state_dict({**detector.state_dict(), **tensors})
    detector.trained_on = description["trained_on"]
    detector.sides = tuple(description["sides"]) if description["sides"] else None
    detector.equaliser = Equaliser(**description["equaliser"])
    if description["calibration"]:
        detector.calibration = Calibration(**description["calibration"])
    return detector.eval()
