"""Models by name: `load("builtin")`, `load("sd15")`, `load("owner/name")`, `load("folder")`,
`load("file.safetensors")`.

diffusers is imported when a model is loaded, not before.
"""

import hashlib
import re
import threading
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from diffusion.cache import cached, lacking, snapshot
from diffusion.known import (
    AUTOMATIC,
    AUTOMATIC_INPAINTING,
    KNOWN,
    Checkpoint,
    MissingWeightsError,
    UnknownModelError,
    files_of,
)
from diffusion.model import DiffusionModel

__all__ = [
    "KNOWN",
    "Checkpoint",
    "MissingWeightsError",
    "UnknownModelError",
    "available",
    "fetch",
    "fingerprint",
    "load",
    "resolve_auto",
]

BUILTIN = Path(__file__).parent / "builtin"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ONE_AT_A_TIME = threading.RLock()
"""The libraries below change how all modules of the process are made while they load one."""
PICKLED = {".ckpt", ".bin", ".pt", ".pth", ".pkl"}


def load(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    offline: bool = False,
    denoiser: bool = True,
) -> DiffusionModel:
    """Return the frozen model that `name` stands for.

    `name` is an alias of `KNOWN`, a folder in diffusers' layout, a `.safetensors` file (a whole Stable
    Diffusion 1, 2 or XL checkpoint, or one half of a TAESD pair, or what the halves' paths have in common,
    or a network of OpenAI's guided diffusion with its original names), or a hub id `owner/name`; an alias
    wins over a folder of that name. `dtype` None means float32, or
    bfloat16 for flow transformers. `revision` is for the hub. `offline` forbids the network; a complete
    cached copy is used without it in any case. `denoiser=False` loads, and fetches, the autoencoder alone;
    pixel models have none and load whole.

    Raises UnknownModelError for a name that is none of these, MissingWeightsError for weights that are
    absent, damaged or not safetensors, and ValueError for a model of an unsupported class.
    """
    path = Path(name).expanduser()
    with _ONE_AT_A_TIME:
        if name in KNOWN or not (path.exists() or _means_file(name)):
            folder, unet = _locate(name, revision, offline, denoiser)
            model = _folder(folder, name, dtype, denoiser, unet)
        elif path.is_dir():
            model = _folder(path, path.resolve().name, dtype, denoiser, "unet")
        else:
            model = _file(path, dtype, denoiser, offline)
    return model.to(device)


def _folder(path: Path, name: str, dtype: torch.dtype | None, denoiser: bool, unet: str) -> DiffusionModel:
    from diffusion.folder import read_folder

    return read_folder(path, name=name, dtype=dtype, denoiser=denoiser, unet=unet)


def _file(path: Path, dtype: torch.dtype | None, denoiser: bool, offline: bool) -> DiffusionModel:
    if path.suffix in PICKLED:
        raise MissingWeightsError(f"{path} may run code when read and is refused: {_conversion(path)}")
    if not (path.exists() or first_half(path).exists()):
        raise MissingWeightsError(f"there is no file {path}")
    from diffusion.single_file import read_file

    return read_file(path, dtype=dtype, denoiser=denoiser, offline=offline)


def fetch(name: str, *, denoiser: bool = True, offline: bool = False) -> Path:
    """Return the folder of an alias or hub id, downloading its files where they are not here.

    Raises UnknownModelError and MissingWeightsError, as `load` does.
    """
    return _locate(name, None, offline, denoiser)[0]


def available(name: str, *, denoiser: bool = True) -> bool:
    """Return whether the weights of an alias, hub id, folder or file are here; uses no network."""
    row, path = KNOWN.get(name), Path(name).expanduser()
    if row is not None and row.hub is None:
        return not lacking(BUILTIN / row.folder, denoiser=denoiser, unet=row.unet)
    if row is None and (path.exists() or first_half(path).exists()):
        return not path.is_dir() or not lacking(path, denoiser=denoiser)
    hub = row.hub if row is not None and row.hub else name
    if not HUB_ID.fullmatch(hub):
        return False
    revision = row.revision if row else "main"
    folder = cached(hub, files_of(row.kind if row else None, denoiser=denoiser), revision=revision)
    return folder is not None and not lacking(folder, denoiser=denoiser)


def resolve_auto(*, inpainting: bool = False) -> str:
    """Return the name of the best full model on this computer, "builtin" if there is no other.

    `inpainting` asks for a model made for that instead, "builtin-inpainting" if there is no other.
    """
    wanted = AUTOMATIC_INPAINTING if inpainting else AUTOMATIC
    fallback = "builtin-inpainting" if inpainting else "builtin"
    return next((name for name in wanted if available(name)), fallback)


def fingerprint(model: nn.Module) -> str:
    """Return twelve hexadecimal digits that tell checkpoints apart, for reports.

    They are a SHA-256 over every parameter's name, shape and first 64 values in float32: fine-tuning
    changes them, and so does loading in another precision.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _locate(name: str, revision: str | None, offline: bool, denoiser: bool) -> tuple[Path, str]:
    """Return the folder of an alias or hub id, and the subfolder of its U-Net."""
    row = KNOWN.get(name)
    if row is not None and row.hub is None:
        folder = BUILTIN / row.folder
        absent = lacking(folder, denoiser=denoiser, unet=row.unet)
        if absent:
            raise MissingWeightsError(
                f"the model {name!r} lacks {', '.join(absent)} in {folder}: install this package again"
            )
        return folder, row.unet
    if row is None and not HUB_ID.fullmatch(name):
        raise UnknownModelError(_unknown(name))
    hub, kind = (row.hub or name, row.kind) if row else (name, None)
    chosen = revision or (row.revision if row else "main")
    files = files_of(kind, denoiser=denoiser)

    def whole(folder: Path) -> bool:
        return not lacking(folder, denoiser=denoiser)

    return snapshot(hub, files, whole, revision=chosen, offline=offline), "unet"


def _conversion(path: Path) -> str:
    if path.suffix not in {".pt", ".pth"}:
        return "convert it to safetensors, or load its folder"
    read, write = f"torch.load('{path}', weights_only=True)", f"'{path.with_suffix('.safetensors')}'"
    return f"convert it to safetensors with safetensors.torch.save_file({read}, {write})"


def _means_file(name: str) -> bool:
    """Return whether a name can only be that of a file, or what the names of a pair have in common."""
    path = Path(name).expanduser()
    return path.suffix in {*PICKLED, ".safetensors"} or first_half(path).exists()


def first_half(path: Path) -> Path:
    """Return the encoder's file of a pair of TAESD halves, `path` being what their names have in common."""
    return path.with_name(f"{path.name}_encoder.safetensors")


def _unknown(name: str) -> str:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"there is no folder or file {name!r}"
    near = get_close_matches(name, KNOWN)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return (
        f"unknown model {name!r}; {hint}known: {', '.join(KNOWN)}; or a folder, a .safetensors file, a hub id"
    )
