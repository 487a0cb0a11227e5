"""Several models as one surrogate: what they have in common, and whether they go together.

Averaging the members' gradients is `attacks.mean_of`; here is what has to hold before that.
"""

import math
from collections.abc import Sequence

from diffusion.load import fingerprint
from diffusion.model import DiffusionModel

Models = DiffusionModel | Sequence[DiffusionModel]
"""One surrogate, or several to be protected against together."""


def members(models: Models) -> tuple[DiffusionModel, ...]:
    """Return the surrogates one by one.

    Raises ValueError if there is none, one is given twice, or they cannot look at the same picture.
    """
    found = (models,) if isinstance(models, DiffusionModel) else tuple(models)
    if not found:
        raise ValueError("a protection is made against a model, or several; got none")
    if len(set(map(id, found))) < len(found):
        raise ValueError("a model is given twice; give each member of an ensemble once")
    if any(model.fixed_size for model in found) and len({model.comfortable for model in found}) > 1:
        seen = " and ".join(f"{model.name} {model.comfortable} px" for model in found)
        raise ValueError(f"these models see pictures of different sizes ({seen}); name models of one size")
    if len({model.device for model in found}) > 1:
        raise ValueError("the members of an ensemble are on different devices; move them to one")
    return found


def common_multiple(models: Models) -> int:
    """Return what the sides of pictures are multiples of, for every member."""
    return math.lcm(*(model.multiple for model in members(models)))


def comfortable(models: Models) -> int:
    """Return the largest side, in pixels, that every member was made for."""
    return min(model.comfortable for model in members(models))


def repeated_encoders(models: Models) -> list[str]:
    """Return one sentence for each member that sees pictures exactly as an earlier one does.

    Such a pair, as Stable Diffusion 1 and 2, adds nothing to a method that uses the autoencoder alone.
    """
    first: dict[str, DiffusionModel] = {}
    said = []
    for model in members(models):
        vae = getattr(model, "vae", None)  # models of plain pixels have none
        earlier = model if vae is None else first.setdefault(fingerprint(vae.encoder), model)
        if earlier is not model:
            said.append(f"{model.name} has the encoder of {earlier.name}: it adds at most its denoiser")
    return said
