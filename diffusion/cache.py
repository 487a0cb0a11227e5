"""Which files of a model are on this computer, and how to get the others. Nothing heavy is imported here."""

import json
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from diffusion.known import MissingWeightsError

PARTS = ("vae", "unet", "transformer", "text_encoder", "tokenizer", "scheduler")


def snapshot(
    hub: str, files: Sequence[str], whole: Callable[[Path], bool], *, revision: str, offline: bool
) -> Path:
    """Return the folder in the hub's cache that holds `files`, downloading them unless `offline`.

    A cached copy of which `whole` is true is used as it is, without asking the hub.

    Raises MissingWeightsError with the command that fetches the files.
    """
    folder = cached(hub, files, revision=revision)
    if folder is not None and whole(folder):
        return folder
    remedy = download_command(hub, files, revision)
    if offline:
        raise MissingWeightsError(
            f"{hub} is not on this computer and offline is set; on a connected one run: {remedy}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise MissingWeightsError(
            f"{hub} asks for its licence to be accepted: do so at https://huggingface.co/{hub}, "
            f"run: hf auth login; then: {remedy}"
        ) from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:160]
        raise MissingWeightsError(
            f"{hub} was not fetched ({reason}); when connected run: {remedy}"
        ) from error


def cached(hub: str, files: Sequence[str], *, revision: str) -> Path | None:
    """Return the folder of a repository in the hub's cache, complete or not, without using the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(hub, revision=revision, allow_patterns=list(files), local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None


def reachable(*, seconds: float = 3.0) -> bool:
    """Return whether the hub answers within `seconds`; False, unasked, where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=seconds):
            return True
    except (OSError, HTTPException, ValueError):
        return False


def download_command(hub: str, files: Sequence[str], revision: str) -> str:
    """Return the shell command that fetches `files` of a repository."""
    chosen = "" if revision == "main" else f" --revision {revision}"
    return f"hf download {hub}{chosen} " + " ".join(f'--include "{pattern}"' for pattern in files)


def lacking(folder: Path, *, denoiser: bool = True, unet: str = "unet") -> list[str]:
    """Return the parts of the model in `folder` that are absent or incomplete; none if it is whole."""
    if (folder / "config.json").exists():
        return [] if complete(folder) else ["weights"]
    if not denoiser and (folder / "vae").is_dir():
        return [] if complete(folder / "vae") else ["vae"]
    return [part for part in parts_of(folder, unet) if not complete(folder / part)]


def parts_of(folder: Path, unet: str = "unet") -> list[str]:
    """Return the names of the subfolders that the model in `folder` consists of."""
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
    named = [
        part for part, kind in index.items() if part.startswith(PARTS) and isinstance(kind, list) and kind[0]
    ]
    parts = named or ["vae", unet, "scheduler", "text_encoder", "tokenizer"]
    return [unet if part == "unet" else part for part in parts]


def has_configurations(folder: Path) -> bool:
    """Return whether every part of the model in `folder` has its configuration, with or without weights."""
    if not (folder / "model_index.json").exists():
        return False
    return all((folder / part).is_dir() for part in parts_of(folder))


def complete(part: Path) -> bool:
    """Return whether a part has all its files: weights, with every shard, where it has any."""
    if part.name.startswith(("tokenizer", "scheduler")):
        return part.is_dir() and any(part.iterdir())
    if not (part / "config.json").exists():
        return False
    weights = list(part.glob("*.safetensors"))
    indices = [index for index in part.glob("*.safetensors.index.json") if ".fp16." not in index.name]
    shards = {shard for index in indices for shard in read_json(index).get("weight_map", {}).values()}
    whole = [path for path in weights if "-of-" not in path.name]
    return bool(whole) or (bool(shards) and all((part / shard).exists() for shard in shards))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's content.

    Raises MissingWeightsError if it is absent or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MissingWeightsError(
            f"{path.parent} has no {path.name}: expected a model in diffusers' layout (vae/, unet/, …)"
        ) from None
    except ValueError as error:
        raise MissingWeightsError(f"{path} is damaged ({error}): fetch it again") from error
