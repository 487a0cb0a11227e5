"""Detectors that look through a diffusion model: DIRE, and DistilDIRE, which needs one call of it.

DIRE (Wang et al., 2023, ICCV, arXiv 2303.09295) shows a network how far a picture is from its reconstruction.
DistilDIRE (Lim et al., 2024, arXiv 2406.00856) shows one the picture and the noise that the diffusion model
sees in it at the first step, and teaches it to have the features of a network that looks at DIRE's maps: the
forty calls are spent in training.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from detect.cache import FeatureCache
from detect.calibration import Logits
from detect.detector import DetectorError, Heat, Labels
from detect.dire import STEPS, check_precision, dire, noise_maps
from detect.equalise import pixel_hash, to_bytes
from detect.network import Features, Lessons, NetworkDetector, mirrored
from detect.resnet import ResNet
from diffusion.codec import LatentModel
from diffusion.load import fingerprint, load
from diffusion.model import DiffusionModel
from imaging.picture import Images
from imaging.tiles import crop_padding, pad_to_multiple

Maps = Float[Tensor, "batch planes height width"]
Sees = Literal["both", "image", "noise"]

MapName = Literal["dire", "noise"]

_MAPS: dict[str, Callable[[DiffusionModel, Images], Maps]] = {"dire": dire, "noise": noise_maps}
_FLOOR = 1e-3


class DiffusionDetector(NetworkDetector):
    """A ResNet on what a diffusion model makes of images; that model is named, and no part of the weights."""

    has_heatmap = True

    def __init__(
        self,
        model: str | DiffusionModel,
        fingerprints: Sequence[str],
        network: Mapping[str, Any] | None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        loaded = load(model) if isinstance(model, str) else model
        check_precision(loaded)
        self._name = model if isinstance(model, str) else model.name
        self._fingerprints = [fingerprint(loaded)]
        if fingerprints and list(fingerprints) != self._fingerprints:
            raise DetectorError(f"it was trained with other weights of {self._name!r}: train it again")
        # in a list, so that it is neither trained nor in the file of weights
        self._model = [loaded.freeze()]
        self._kept: dict[str, FeatureCache] = {}
        self._network = dict(network or {})
        self.network = ResNet(self.planes(loaded), **self._network)

    def planes(self, model: DiffusionModel) -> int:
        """Return how many planes the network sees."""
        return 3

    def settings(self) -> dict[str, Any]:
        chosen = {"model": self._name, "fingerprints": self._fingerprints, "network": self._network}
        return {**chosen, **super().settings()}

    @property
    def model(self) -> DiffusionModel:
        """The diffusion model, where the network is."""
        device = self.network.fc.weight.device
        if self._model[0].device != device:
            self._model[0] = self._model[0].to(device)
        return self._model[0]

    def answer(self, features: Features) -> Logits:
        return self.network(features)

    def augmented(self, lessons: Lessons, generator: torch.Generator | None = None) -> Lessons:
        # pictures and their maps are mirrored together; whatever else changed a picture would leave its maps
        # those of another one
        return mirrored(lessons, generator)

    def remember(self, folder: str | Path) -> Self:
        """Keep the maps of pictures in a folder from now on, and take from there those that it has.

        It is for training: pictures are known by their bytes, so images must be those of files.

        Raises StaleCacheError for a folder with maps of another model or another number of steps.
        """
        settings = {"fingerprints": self._fingerprints, "steps": STEPS}
        for name in _MAPS:
            self._kept[name] = FeatureCache(Path(folder) / name, {**settings, "maps": name})
        return self

    def maps(self, name: MapName, images: Images) -> Maps:
        """Return `dire` or the first step's `noise` of images of any size, at that size."""
        if name not in self._kept:
            return self._computed(name, images)
        cache, keys = self._kept[name], [pixel_hash(to_bytes(one[None]).cpu()) for one in images]
        missing = dict(zip(keys, images, strict=True))
        cache.fill(keys, lambda some: self._computed(name, torch.stack([missing[key] for key in some])))
        return cache.get(keys).to(images)

    def _computed(self, name: MapName, images: Images) -> Maps:
        """The maps of images whose borders are mirrored up to what the model takes, without those borders."""
        padded = pad_to_multiple(images, self.model.multiple)
        return crop_padding(_MAPS[name](self.model, padded), *images.shape[-2:])


class DireDetector(DiffusionDetector):
    """A ResNet on DIRE's maps, scaled to [-1, 1]: a baseline, and the teacher of DistilDIRE."""

    kind = "dire"

    def __init__(
        self,
        *,
        model: str | DiffusionModel = "cifar10",
        fingerprints: Sequence[str] = (),
        network: Mapping[str, Any] | None = None,
        epochs: int = 10,
        batch_size: int = 64,
        learning_rate: float = 1e-4,
    ) -> None:
        """Build an untrained detector.

        Args:
            model: diffusion model that reconstructs, by a name that `diffusion.load` takes, or itself.
            fingerprints: of the weights of `model` that it was trained with; checked.
            network: settings of `detect.resnet.ResNet`; a ResNet-50 without.
            epochs: of `learn`, as `batch_size` and `learning_rate`, which is Adam's.

        Raises:
            DetectorError: the model has other weights than its fingerprint says.
            ValueError: the model is in half precision.
        """
        super().__init__(
            *(model, fingerprints, network),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )

    def features(self, images: Images) -> Features:
        return shown(self.maps("dire", images))

    def heatmap(self, images: Images) -> Heat:
        """Return where images come back closest, by minus the logarithm of their error."""
        return -(self.maps("dire", images).mean(1) + _FLOOR).log()


class DistilDireDetector(DiffusionDetector):
    """A ResNet on images and the first step's noise: one call of the diffusion model in the place of forty.

    Departures from the authors' code: features of student and teacher are normalised over their channels
    before they are compared, unless `raw`, because a few large channels decide otherwise; a picture is varied
    together with its maps or not at all; the noise is float32 in training and afterwards.
    """

    kind = "distildire"

    def __init__(
        self,
        *,
        model: str | DiffusionModel = "cifar10",
        fingerprints: Sequence[str] = (),
        network: Mapping[str, Any] | None = None,
        sees: Sees = "both",
        raw: bool = False,
        epochs: int = 10,
        batch_size: int = 64,
        learning_rate: float = 1e-4,
    ) -> None:
        """Build an untrained detector; without `taught_by` it learns from labels alone.

        Args:
            model: diffusion model whose noise is seen, by a name that `diffusion.load` takes, or itself.
            fingerprints: of the weights of `model` that it was trained with; checked.
            network: settings of `detect.resnet.ResNet`; a ResNet-50 without.
            sees: the image, the noise, or both.
            raw: compare features as they are, by their mean squared difference, as the authors do.
            epochs: of `learn`, as `batch_size` and `learning_rate`, which is Adam's.

        Raises:
            DetectorError: `sees` is unknown, or the model has other weights than its fingerprint says.
            ValueError: the model is in half precision.
        """
        if sees not in get_args(Sees):
            raise DetectorError(f"distildire sees {', '.join(get_args(Sees))}; got {sees!r}")
        self._sees, self._raw = sees, raw
        self._teacher: tuple[DireDetector, float] | None = None
        super().__init__(
            *(model, fingerprints, network),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )

    def planes(self, model: DiffusionModel) -> int:
        noise = model.latent_channels if isinstance(model, LatentModel) else 3
        return {"image": 3, "noise": noise, "both": 3 + noise}[self._sees]

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "sees": self._sees, "raw": self._raw}

    def taught_by(self, teacher: DireDetector, weight: float = 1.0) -> Self:
        """Learn the teacher's last features of DIRE's maps beside the labels, from now on.

        The teacher is frozen here and not kept with the detector.

        Raises DetectorError for a teacher whose diffusion model or features are others, or a negative weight.
        """
        if weight < 0:
            raise DetectorError(f"the weight of a teacher is 0 or more; got {weight:g}")
        if teacher._fingerprints != self._fingerprints:
            raise DetectorError("the teacher looks through another diffusion model")
        if teacher.network.depth != self.network.depth:
            raise DetectorError(
                f"the teacher has {teacher.network.depth} features and the student {self.network.depth}: "
                "give both the same network"
            )
        self._teacher = (teacher.eval().requires_grad_(False), weight)
        return self

    def features(self, images: Images) -> Features:
        parts = [] if self._sees == "noise" else [2 * images - 1]
        parts += [] if self._sees == "image" else [self.maps("noise", images)]
        return torch.cat(parts, dim=1)

    def lessons(self, images: Images) -> Lessons:
        """Return the features, and below a teacher DIRE's maps as it sees them."""
        own = self.features(images)
        if self._teacher is None:
            return own
        # its own maps are the teacher's, and those that it remembers
        return torch.cat([own, shown(self.maps("dire", images))], dim=1)

    def losses(self, lessons: Lessons, labels: Labels) -> dict[str, Tensor]:
        if self._teacher is None:
            return super().losses(lessons, labels)
        teacher, weight = self._teacher
        seen, reconstructed = lessons[:, :-3], lessons[:, -3:]
        maps = self.network.maps(seen)
        with torch.no_grad():
            expected = teacher.network.to(reconstructed.device).maps(reconstructed)
        terms = self.classified(self.network.judge(maps), labels)
        return {**terms, "teacher": weight * distance(maps, expected, raw=self._raw)}

    def heatmap(self, images: Images) -> Heat:
        """Return where the model sees least noise, by minus the logarithm of its size."""
        return -(self.maps("noise", images).abs().mean(1) + _FLOOR).log()


def shown(maps: Maps) -> Features:
    """Return DIRE's maps as networks see them, in [-1, 1]."""
    return 2 * maps - 1


def distance(maps: Features, expected: Features, *, raw: bool = False) -> Tensor:
    """Return how far features are from those expected: the squared distance of their directions at a place,
    averaged over places, or with `raw` their mean squared difference."""
    if raw:
        return mse_loss(maps, expected)
    return (normalize(maps, dim=1) - normalize(expected, dim=1)).square().sum(1).mean()
