"""How closely autoencoders give a picture back: what a latent model made, its own autoencoder knows well.

AEROBLADE (Ricker et al., 2024, CVPR, arXiv 2401.17879) scores a picture by the least distance, over several
autoencoders, from its reconstruction. It needs no training, speaks of latent models only, and mistakes plain
pictures for generated ones, because those are easy to give back.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detect.calibration import Logits
from detect.detector import Detector, DetectorError, Heat
from diffusion.load import fingerprint, load
from diffusion.model import DiffusionModel
from imaging.picture import Images
from imaging.tiles import crop_padding, merge, pad_to_multiple, plan_tiles, split
from imaging.transforms import gaussian_blur

Distance = Callable[[Images, Images], Heat]

_FLOOR = 1e-8
_TILE = 512
"""Side of the parts of large pictures, in pixels."""


def local_distance(images: Images, others: Images) -> Heat:
    """Return the squared difference of edges, averaged over colours and a neighbourhood of a few pixels.

    It stands for the second layer of LPIPS on VGG, which AEROBLADE uses, where those weights are not at hand.
    Edges are what is left after a small blur: colours that are off as a whole say nothing here.
    """
    edges = [each - gaussian_blur(each, 1.0) for each in (images, others)]
    return gaussian_blur((edges[0] - edges[1]).square().mean(1, keepdim=True), 2.0)[:, 0]


class ReconstructionDetector(Detector):
    """The least reconstruction error over autoencoders; the logit is minus its logarithm.

    Departures from AEROBLADE: the mean of the posterior in the place of a draw, float32, tiles for pictures
    of more than 512 px, and `local_distance` unless another distance is given in Python.
    """

    kind = "reconstruction"
    learns = False
    has_heatmap = True

    def __init__(
        self,
        *,
        models: Sequence[str | DiffusionModel] = ("builtin",),
        fingerprints: Sequence[str] = (),
        distance: Distance = local_distance,
    ) -> None:
        """Load the autoencoders.

        Args:
            models: names that `diffusion.load` takes, or models.
            fingerprints: of the weights that a calibration was fitted with, by model; checked.
            distance: of images from their reconstructions, at each place. It is not saved.

        Raises:
            DetectorError: there is no model, or one has other weights than its fingerprint says.
        """
        super().__init__()
        if not models:
            raise DetectorError("reconstruction needs one autoencoder or more")
        loaded = [load(each, denoiser=False) if isinstance(each, str) else each for each in models]
        self.autoencoders, self._distance = nn.ModuleList(loaded), distance
        self._names = [each if isinstance(each, str) else each.name for each in models]
        self._fingerprints = [fingerprint(model) for model in loaded]
        for name, now, before in zip(self._names, self._fingerprints, fingerprints, strict=False):
            if now != before:
                raise DetectorError(f"it was calibrated with other weights of {name!r}: calibrate it again")

    def settings(self) -> dict[str, Any]:
        return {"models": self._names, "fingerprints": self._fingerprints}

    def weights(self) -> dict[str, Tensor]:
        """Return nothing: the autoencoders are loaded by name."""
        return {}

    def forward(self, images: Images) -> Logits:
        return -(self._errors(images).mean((2, 3)).amin(0) + _FLOOR).log()

    def heatmap(self, images: Images) -> Heat:
        """Return minus the logarithm of the error of the autoencoder that is nearest, at each place."""
        errors = self._errors(images)
        nearest = errors.mean((2, 3)).argmin(0)
        return -(errors[nearest, torch.arange(len(images))] + _FLOOR).log()

    @torch.no_grad()
    def _errors(self, images: Images) -> Tensor:
        """The distance of images from each autoencoder's reconstruction: [models, batch, height, width]."""
        return torch.stack([self._distance(images, round_trip(each, images)) for each in self.autoencoders])


@torch.no_grad()
def round_trip(model: nn.Module, images: Images) -> Images:
    """Return images as a model's autoencoder gives them back, rounded to the levels of a file.

    Borders are mirrored up to the multiple that the model needs, and cut again. Images larger than a tile are
    given back in overlapping tiles.
    """
    assert isinstance(model, DiffusionModel)
    size = math.ceil(_TILE / model.multiple) * model.multiple
    plan = plan_tiles(*images.shape[-2:], size=size, overlap=size // 8, multiple=model.multiple)
    tiles = (_tile_back(model, tile) for tile in split(images.float(), plan))
    return (merge(tiles, plan, device=images.device) * 255).round() / 255


def _tile_back(model: DiffusionModel, tile: Images) -> Images:
    padded = pad_to_multiple(tile, model.multiple)
    return crop_padding(model.decode(model.encode(padded)), *tile.shape[-2:])
