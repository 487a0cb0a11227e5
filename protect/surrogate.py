"""The model that a protection is made against."""

from diffusion.choice import Choice, Device, Precision
from diffusion.model import DiffusionModel
from protect.method import ProtectionMethod


def load_for(
    method: ProtectionMethod,
    choice: Choice,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    offline: bool = False,
    whole: bool = False,
) -> DiffusionModel:
    """Load what `method` needs of the chosen model; with `whole` also a denoiser that it does not need.

    Raises UnknownModelError and MissingWeightsError (see `diffusion.load`), ValueError when the model lacks
    what the method needs.
    """
    denoiser = method.needs_denoiser or whole
    model = choice.load(device=device, precision=precision, offline=offline, denoiser=denoiser)
    method.check(model)
    return model
