"""Models from folders in diffusers' layout: `model_index.json`, and one subfolder per part.

Only safetensors are read, and nothing is fetched: a folder is all there is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models import SD3Transformer2DModel
from safetensors import SafetensorError

from diffusion.cache import read_json
from diffusion.flow import T5_TOKENS, Flux, StableDiffusion3
from diffusion.known import MissingWeightsError
from diffusion.latent import Autoencoder, LatentDiffusion
from diffusion.model import DiffusionModel, Prediction
from diffusion.pixel import PixelDiffusion
from diffusion.schedule import NoiseSchedule
from diffusion.text import TextEncoder

PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
TOKENIZERS = {
    "CLIPTextModel": "CLIPTokenizer",
    "CLIPTextModelWithProjection": "CLIPTokenizer",
    "T5EncoderModel": "T5TokenizerFast",
}


def read_folder(
    folder: Path, *, name: str, dtype: torch.dtype | None = None, denoiser: bool = True, unet: str = "unet"
) -> DiffusionModel:
    """Return the model that lies in `folder`: a whole pipeline, or a bare autoencoder or pixel U-Net.

    `dtype` None means float32, or bfloat16 for flow transformers, as they are published. `denoiser=False`
    reads the autoencoder alone, if there is one. `unet` names the U-Net's subfolder.

    Raises MissingWeightsError if parts or their weights are absent or damaged, ValueError if they are of a
    class that is not supported.
    """
    with quiet_libraries():
        return _read(folder, name, dtype, denoiser, unet)


def _read(folder: Path, name: str, dtype: torch.dtype | None, denoiser: bool, unet: str) -> DiffusionModel:
    bare = read_json(folder / "config.json").get("_class_name") if (folder / "config.json").exists() else None
    if bare in AUTOENCODERS or (not denoiser and (folder / "vae").is_dir()):
        part = folder if bare else folder / "vae"
        return Autoencoder(_autoencoder(part, dtype or torch.float32), name=name)
    if bare == "UNet2DModel":
        return _pixel(folder, folder, name, dtype)
    if bare is not None:
        raise ValueError(
            f"{folder} holds a bare {bare}; expected AutoencoderKL, AutoencoderTiny or UNet2DModel"
        )
    if (folder / "transformer").is_dir():
        return _flow(folder, name, dtype or torch.bfloat16)
    if read_json(folder / unet / "config.json").get("_class_name") == "UNet2DModel":
        return _pixel(folder, folder / unet, name, dtype)
    return _latent(folder, name, dtype or torch.float32, unet)


def _latent(folder: Path, name: str, dtype: torch.dtype, unet: str) -> LatentDiffusion:
    schedule, prediction = _schedule(folder)
    schedule.clip = None  # a scheduler's default of clipping to [-1, 1] is meant for pixels
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
    return LatentDiffusion(
        _autoencoder(folder / "vae", dtype),
        _part(folder / unet, dtype, ("UNet2DConditionModel",)),
        schedule,
        texts=_texts(folder, dtype, {}),
        prediction=prediction,
        name=name,
        zero_empty=index.get("force_zeros_for_empty_prompt", True),
    )


def _flow(folder: Path, name: str, dtype: torch.dtype) -> StableDiffusion3 | Flux:
    transformer = _part(folder / "transformer", dtype, ("SD3Transformer2DModel", "FluxTransformer2DModel"))
    vae, schedule = _autoencoder(folder / "vae", dtype), _schedule(folder)[0]
    if isinstance(transformer, SD3Transformer2DModel):
        texts = _texts(folder, dtype, {"text_encoder_3": T5_TOKENS})
        return StableDiffusion3(vae, transformer, schedule, texts=texts, name=name)
    # FLUX walks evenly down to one step above clean, whatever its scheduler's configuration says
    schedule.spacing, schedule.offset = "trailing", 0
    length = 512 if transformer.config.guidance_embeds else 256
    texts = _texts(folder, dtype, {"text_encoder_2": length})
    return Flux(vae, transformer, schedule, texts=texts, name=name)


def _pixel(folder: Path, unet: Path, name: str, dtype: torch.dtype | None) -> PixelDiffusion:
    schedule, prediction = NoiseSchedule.linear(clip=1.0), PREDICTIONS["epsilon"]
    if (folder / "scheduler_config.json").exists() or (folder / "scheduler").is_dir():
        schedule, prediction = _schedule(folder)
    part = _part(unet, dtype or torch.float32, ("UNet2DModel",))
    # ours beside diffusers' own entries; its pipelines leave unknown ones alone
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
    labels, patch = index.get("labels", ()), index.get("patch", 1)
    return PixelDiffusion(part, schedule, prediction=prediction, name=name, labels=labels, patch=patch)


def _schedule(folder: Path) -> tuple[NoiseSchedule, Prediction]:
    place = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    config = read_json(place / "scheduler_config.json")
    return schedule_of(getattr(diffusers, config["_class_name"]).from_config(config))


def schedule_of(scheduler: Any) -> tuple[NoiseSchedule, Prediction]:
    """Return a diffusers scheduler's noise levels, and what its model predicts.

    Raises ValueError for one that is not supported.
    """
    said = scheduler.config.get("prediction_type", "epsilon")
    if said not in PREDICTIONS:
        raise ValueError(f"unknown prediction type {said!r}; available: {', '.join(PREDICTIONS)}")
    return NoiseSchedule.from_diffusers(scheduler), PREDICTIONS[said]


def _texts(folder: Path, dtype: torch.dtype, lengths: dict[str, int]) -> list[TextEncoder]:
    """Read text_encoder, text_encoder_2, ... with their tokenizers, as many as there are."""
    texts = []
    for encoder in sorted(path for path in folder.glob("text_encoder*") if path.is_dir()):
        kind = read_json(encoder / "config.json").get("architectures", ["CLIPTextModel"])[0]
        if kind not in TOKENIZERS:
            raise ValueError(
                f"{encoder}: text encoders of class {kind} are not supported; expected CLIP or T5"
            )
        tokenizer = encoder.with_name(encoder.name.replace("text_encoder", "tokenizer"))
        if not tokenizer.is_dir():
            raise MissingWeightsError(f"{folder} has no {tokenizer.name}: fetch the whole model again")
        texts.append(
            TextEncoder(
                getattr(transformers, TOKENIZERS[kind]).from_pretrained(tokenizer, local_files_only=True),
                _part(encoder, dtype, (kind,)),
                length=lengths.get(encoder.name),
            )
        )
    return texts


def _autoencoder(folder: Path, dtype: torch.dtype) -> Any:
    # most overflow in float16, and rounding their weights to it saves little
    return _part(folder, torch.float32 if dtype == torch.float16 else dtype, AUTOENCODERS)


def _part(folder: Path, dtype: torch.dtype, expected: tuple[str, ...]) -> Any:
    """Read one network, whose class its configuration names, from safetensors only."""
    config = read_json(folder / "config.json")
    kind = config.get("_class_name") or config.get("architectures", [expected[0]])[0]
    if kind not in expected:
        raise ValueError(f"{folder} holds a {kind}; expected {' or '.join(expected)}")
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise MissingWeightsError(f"{folder} holds no .safetensors weights: {_remedy(folder)}")
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    if all(".fp16." in path.name for path in weights):
        options["variant"] = "fp16"
    if "_class_name" in config:
        options |= {"torch_dtype": dtype, "low_cpu_mem_usage": find_spec("accelerate") is not None}
        library = diffusers
    else:
        options["dtype"], library = dtype, transformers
    try:
        network, report = getattr(library, kind).from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise MissingWeightsError(f"{folder} cannot be read ({reason}): fetch its weights again") from error
    if report["missing_keys"]:  # both libraries would go on with random weights
        lost = ", ".join(sorted(report["missing_keys"])[:3])
        raise MissingWeightsError(f"{folder} lacks weights, such as {lost}: fetch them again")
    return network


def _remedy(folder: Path) -> str:
    others = [path.name for path in folder.iterdir() if path.suffix in {".bin", ".ckpt", ".pt", ".pth"}]
    if others:
        return f"{others[0]} may run code when read and is refused; convert it to safetensors"
    return "download them, or point to a folder that has them"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars and remarks of diffusers and transformers off the terminal for a while."""
    logs = [library.utils.logging for library in (diffusers, transformers)]
    before = [(log.is_progress_bar_enabled(), log.get_verbosity()) for log in logs]
    for log in logs:
        log.disable_progress_bar()
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, (shown, verbosity) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if shown:
                log.enable_progress_bar()
