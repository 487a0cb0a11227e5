"""A linear probe of CLIP's features, which have seen no detector's training set.

UniversalFakeDetect (Ojha et al., 2023, CVPR, arXiv 2302.10174): what CLIP's image encoder knows of pictures
carries further than a network that was trained to tell one generator's pictures from real ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import interpolate

from detect.detector import DetectorError
from detect.linear import LinearDetector, Statistics
from diffusion.load import fingerprint
from imaging.picture import Images

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipDetector(LinearDetector):
    """Logistic regression on the projected embedding of a frozen CLIP image encoder.

    Departures from the authors' recipe: scikit-learn's fit in the place of AdamW, no augmentation, and
    pictures with a side below the encoder's own are enlarged to it, where theirs get a black border. Of
    larger ones the centre is seen, at its own size, as theirs.
    """

    kind = "clip"

    def __init__(
        self,
        *,
        model: str = "openai/clip-vit-large-patch14",
        fingerprints: Sequence[str] = (),
        regularisation: float = 1.0,
    ) -> None:
        """Load the encoder.

        Args:
            model: hub id or local folder of a CLIP model, safetensors.
            fingerprints: of the weights of `model` that it was trained with; checked.
            regularisation: inverse strength of scikit-learn's penalty, its C.

        Raises:
            DetectorError: the model cannot be loaded, or has other weights than its fingerprint says.
        """
        encoder = _loaded(model)
        super().__init__(encoder.config.projection_dim, regularisation=regularisation)
        self._name, self._fingerprints = model, [fingerprint(encoder)]
        if fingerprints and list(fingerprints) != self._fingerprints:
            raise DetectorError(f"it was trained with other weights of {model!r}: train it again")
        # in a list, so that it is not in the file of weights
        self._encoder = [encoder.eval().requires_grad_(False)]

    def settings(self) -> dict[str, Any]:
        return {"model": self._name, "fingerprints": self._fingerprints, **super().settings()}

    @torch.no_grad()
    def statistics(self, images: Images) -> Statistics:
        self._encoder[0] = encoder = self._encoder[0].to(images.device)
        seen = centre(images, encoder.config.image_size)
        mean, std = (seen.new_tensor(each).view(1, 3, 1, 1) for each in (_MEAN, _STD))
        return encoder(pixel_values=(seen - mean) / std).image_embeds.float()


def centre(images: Images, side: int) -> Images:
    """Return the middle square of images, `side` pixels wide; smaller ones are enlarged first."""
    short = min(images.shape[-2:])
    if short < side:
        height, width = (round(side * each / short) for each in images.shape[-2:])
        images = interpolate(images, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    top, left = ((each - side) // 2 for each in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def _loaded(model: str) -> Any:
    # imported here: it takes seconds, and no other detector needs it
    from transformers import CLIPVisionModelWithProjection

    try:
        return CLIPVisionModelWithProjection.from_pretrained(model, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise DetectorError(
            f"{model!r} holds no CLIP image encoder in safetensors: {' '.join(str(error).split())[:200]}"
        ) from error
