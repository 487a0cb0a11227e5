"""Which model, where it runs, and in which precision: what command lines ask before they load one."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from diffusion.known import KNOWN
from diffusion.load import BUILTIN, first_half, load, resolve_auto
from diffusion.model import DiffusionModel

Device = str | torch.device
Precision = Literal["auto", "float32", "bfloat16"]

_TAIL = 65_536


@dataclass(frozen=True)
class Choice:
    """A model that was chosen and not yet loaded."""

    name: str
    """What `diffusion.load.load` takes; never "auto"."""

    @property
    def label(self) -> str:
        """The name for people: an alias, a hub id, or a folder's or file's own name."""
        path = Path(self.name)
        here = path.exists() or first_half(path).exists()
        return path.resolve().name if here and self.name not in KNOWN else self.name

    @property
    def identity(self) -> str:
        """A name that changes with the weights, as far as that can be told without loading them."""
        known = KNOWN.get(self.name)
        if known and known.hub is not None:
            return f"{known.hub}@{known.revision}"
        path = BUILTIN / known.folder if known else Path(self.name).expanduser()
        path = path if path.exists() else first_half(path)
        return f"{self.label}:{_weights_digest(path)}" if path.exists() else self.name

    def load(
        self,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        offline: bool = False,
        denoiser: bool = True,
    ) -> DiffusionModel:
        """Load the model, or its autoencoder alone.

        Raises UnknownModelError and MissingWeightsError (see `diffusion.load`).
        """
        place = pick_device(device)
        run_in = network_precision(precision, place)
        # On a GPU the weights themselves are halved; on a CPU memory is plenty, and autocast converts as it
        # goes.
        dtype = run_in if place.type == "cuda" and run_in != torch.float32 else None
        return load(self.name, device=place, dtype=dtype, offline=offline, denoiser=denoiser)


def choose(name: str, *, inpainting: bool = False) -> Choice:
    """Choose by name; "auto" is the best full model on this computer, else the built-in one.

    `inpainting` makes that the best one made for inpainting.
    """
    return Choice(resolve_auto(inpainting=inpainting) if name == "auto" else os.fspath(name))


def pick_device(device: Device) -> torch.device:
    """Return the device that a word such as "auto", "cpu" or "cuda:1" stands for.

    Raises ValueError for one that is unknown or not in this computer.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {str(device)!r} cannot be used ({reason}); try auto, cpu or cuda"
        ) from error
    return place


def network_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of the networks on `device`; "auto" is bfloat16 where the hardware is fast at it.

    Raises ValueError for an unknown word.
    """
    match precision:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "auto":
            return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    raise ValueError(f"unknown precision {precision!r}; available: auto, float32, bfloat16")


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older releases of torch lack the function, and float32 is right everywhere.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _weights_digest(path: Path) -> str:
    """A hash of the ends of all weights: training moves them, and reading them takes no time."""
    digest = hashlib.sha256()
    for file in _weights(path) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL))
            digest.update(f"{file.relative_to(path)} {size}".encode() + stream.read())
    return digest.hexdigest()[:16]


def _weights(folder: Path) -> list[Path]:
    """The weights of a model's folder, without those of other models in folders of their own."""
    others = {index.parent for index in folder.rglob("model_index.json")} - {folder}
    files = sorted(folder.rglob("*.safetensors"))
    return [file for file in files if not others & set(file.parents)]
