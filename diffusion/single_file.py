"""Models from one `.safetensors` file: whole Stable Diffusion checkpoints, pairs of TAESD halves, and pixel
models of guided diffusion.

A whole checkpoint says neither its architecture nor its tokenizer; both come from the configurations, a few
hundred kilobytes, of the repository that its family was published in. The autoencoder alone needs none of
them.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file

from diffusion.cache import has_configurations, snapshot
from diffusion.folder import quiet_libraries, schedule_of
from diffusion.guided_diffusion import is_guided_diffusion, read_guided_diffusion
from diffusion.known import CONFIGURATIONS, KNOWN
from diffusion.latent import Autoencoder, LatentDiffusion
from diffusion.model import DiffusionModel
from diffusion.text import TextEncoder
from diffusion.weights import Shapes, shapes_of

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
TEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SECOND_ENCODER = "conditioner.embedders.1.model.token_embedding.weight"
FAMILIES = {
    ("sd1", 4): "sd15",
    ("sd1", 8): "instruct-pix2pix",
    ("sd1", 9): "sd15-inpainting",
    ("sd2", 9): "sd2-inpainting",
    ("sdxl", 4): "sdxl",
    ("sdxl", 9): "sdxl-inpainting",
}
VAE_CONFIGURATION: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
VAE_SCALES = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}


def read_file(
    path: Path, *, dtype: torch.dtype | None = None, denoiser: bool = True, offline: bool = False
) -> DiffusionModel:
    """Return the model in one file: a Stable Diffusion 1, 2 or XL checkpoint, a TAESD pair, or an ADM.

    Of a pair, `path` is either half, `…_encoder.safetensors` or `…_decoder.safetensors`, or what comes
    before that.

    Raises MissingWeightsError if the file, its other half or its configurations are absent or damaged,
    ValueError if it holds something else.
    """
    dtype = dtype or torch.float32
    stem = path.name.removesuffix(".safetensors").removesuffix("_encoder").removesuffix("_decoder")
    halves = [path.with_name(f"{stem}_{half}.safetensors") for half in ("encoder", "decoder")]
    if path in halves or not path.exists():
        return _distilled(halves, stem, dtype)
    shapes = shapes_of(path)
    if is_guided_diffusion(shapes):
        return read_guided_diffusion(path, dtype=dtype)
    family, channels = _family(shapes, path)
    if not denoiser:
        return _autoencoder(path, family, dtype)
    if (family, channels) not in FAMILIES:
        raise ValueError(
            f"{path} is a Stable Diffusion 2 that does not say if it predicts noise or velocity: "
            "load its folder in diffusers' layout, or 'sd21-base' or 'sd21'"
        )
    return _checkpoint(path, KNOWN[FAMILIES[family, channels]].alias, dtype, offline)


def _distilled(halves: list[Path], stem: str, dtype: torch.dtype) -> Autoencoder:
    """Read the two halves of a TAESD, whose keys are positions in a sequence of layers."""
    weights = {}
    for path, part, first in zip(halves, ("encoder", "decoder"), (0, 1), strict=True):
        shapes_of(path)
        for key, value in load_file(path).items():
            position, _, rest = key.partition(".")
            # a decoder's first layer is a clamp, which diffusers does not count
            weights[f"{part}.layers.{int(position) - first}.{rest}"] = value
    last = max((key for key in weights if key.startswith("encoder")), key=lambda key: int(key.split(".")[2]))
    vae = AutoencoderTiny(latent_channels=len(weights[last]))
    vae.load_state_dict(weights)
    return Autoencoder(vae.type(dtype), name=stem)


def _autoencoder(path: Path, family: str, dtype: torch.dtype) -> Autoencoder:
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        configuration = {**VAE_CONFIGURATION, "scaling_factor": VAE_SCALES[family]}
        (Path(folder) / "config.json").write_text(json.dumps(configuration))
        vae = AutoencoderKL.from_single_file(
            str(path), config=folder, local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=False
        )
    return Autoencoder(vae, name=path.stem)


def _checkpoint(path: Path, alias: str, dtype: torch.dtype, offline: bool) -> LatentDiffusion:
    configurations = _configurations(alias, offline)
    kind = json.loads((configurations / "model_index.json").read_text())["_class_name"]
    options = {"safety_checker": None} if "XL" not in kind else {"add_watermarker": False}
    with quiet_libraries():
        pipeline = getattr(diffusers, kind).from_single_file(
            str(path), config=str(configurations), local_files_only=True, torch_dtype=dtype, **options
        )
    parts = pipeline.components
    schedule, prediction = schedule_of(pipeline.scheduler)
    schedule.clip = None
    texts = [
        TextEncoder(parts[f"tokenizer{end}"], parts[f"text_encoder{end}"])
        for end in ("", "_2")
        if parts.get(f"text_encoder{end}") is not None
    ]
    return LatentDiffusion(
        parts["vae"], parts["unet"], schedule, texts=texts, prediction=prediction, name=path.stem
    )


def _configurations(alias: str, offline: bool) -> Path:
    row = KNOWN[alias]
    assert row.hub is not None
    return snapshot(row.hub, CONFIGURATIONS, has_configurations, revision=row.revision, offline=offline)


def _family(shapes: Shapes, path: Path) -> tuple[str, int]:
    """Return a checkpoint's family and its U-Net's input channels."""
    channels = shapes.get(FIRST, (0, 0))[1]
    if SECOND_ENCODER in shapes:
        family = "sdxl"
    else:
        width = shapes.get(TEXT, (0, 0))[-1]
        family = "sd2" if width == 1024 else "sd1"
    if (family, channels) not in {*FAMILIES, ("sd2", 4)}:
        raise ValueError(
            f"{path} is no whole Stable Diffusion 1, 2 or XL checkpoint and no TAESD half or ADM; "
            "load other models from a folder in diffusers' layout"
        )
    return family, channels
