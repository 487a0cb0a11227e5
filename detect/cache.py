"""Features on disk: safetensors shards, and a manifest that knows which settings they were made with.

Computing features takes most of the time of a training, and a cache that silently holds those of another
model or another number of steps spoils it. A cache answers for one set of settings only.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imaging.whole import whole, write_whole

MANIFEST = "manifest.json"


class StaleCacheError(ValueError):
    """A cache that was made with other settings, or is damaged."""


class FeatureCache:
    """A folder of tensors by key; keys are hashes of pixels, so that renaming or moving pictures is harmless.

    What was added since the last full shard is written by `flush`, or lost: it is computed again next time.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], *, shard_size: int = 1000) -> None:
        """Open a cache, or begin one.

        Args:
            folder: made if it does not exist.
            settings: everything that decides about a feature beside the picture: model and revision, steps,
                precision, preprocessing. JSON must be able to write them.
            shard_size: tensors in a file.

        Raises:
            StaleCacheError: the folder holds features of other settings; the message names the difference.
        """
        self._folder, self._shard_size = Path(folder), shard_size
        self._settings = json.loads(json.dumps(dict(settings), sort_keys=True))
        self._homes: dict[str, str] = {}
        self._waiting: dict[str, Tensor] = {}
        if (self._folder / MANIFEST).exists():
            self._read_manifest()

    def __contains__(self, key: str) -> bool:
        return key in self._homes or key in self._waiting

    def __len__(self) -> int:
        return len(self._homes) + len(self._waiting)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys of which there is no feature, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self]

    def add(self, key: str, feature: Tensor) -> None:
        """Keep a feature; a full shard is written."""
        self._waiting[key] = feature.detach().cpu().contiguous()
        if len(self._waiting) >= self._shard_size:
            self.flush()

    def flush(self) -> None:
        """Write what was added: first the shard and then the manifest, each whole or not at all."""
        if not self._waiting:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{secrets.token_hex(8)}.safetensors"
        with whole(self._folder / name) as partial:
            save_file(self._waiting, partial)
        self._homes |= dict.fromkeys(self._waiting, name)
        self._waiting = {}
        self._write_manifest()

    def get(self, keys: Sequence[str]) -> Tensor:
        """Return the features of keys, stacked in their order.

        Raises:
            KeyError: one is missing.
            StaleCacheError: a shard that the manifest names is gone or damaged.
        """
        found = {key: self._waiting[key] for key in keys if key in self._waiting}
        shards: dict[str, list[str]] = {}
        for key in dict.fromkeys(keys):
            if key not in found:
                shards.setdefault(self._homes[key], []).append(key)
        for name, own in shards.items():
            found |= self._read_shard(name, own)
        return torch.stack([found[key] for key in keys])

    def fill(
        self, keys: Iterable[str], compute: Callable[[list[str]], Tensor], *, batch_size: int = 32
    ) -> None:
        """Compute what is missing, batch by batch, and write it.

        `compute` takes keys and returns their features, stacked. A run that is stopped goes on where the last
        full shard ended.
        """
        missing = self.missing(keys)
        for start in range(0, len(missing), batch_size):
            some = missing[start : start + batch_size]
            for key, feature in zip(some, compute(some), strict=True):
                self.add(key, feature)
        self.flush()

    def _read_shard(self, name: str, keys: list[str]) -> dict[str, Tensor]:
        try:
            with safe_open(self._folder / name, framework="pt") as shard:
                return {key: shard.get_tensor(key) for key in keys}
        except (OSError, SafetensorError) as error:
            raise StaleCacheError(
                f"the cache {str(self._folder)!r} lost {name} or it is damaged: delete the folder"
            ) from error

    def _read_manifest(self) -> None:
        path = self._folder / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            settings, homes = manifest["settings"], manifest["homes"]
        except (ValueError, KeyError, TypeError) as error:
            raise StaleCacheError(f"{str(path)!r} is damaged: delete the folder") from error
        if settings != self._settings:
            raise StaleCacheError(
                f"the cache {str(self._folder)!r} was made with other settings "
                f"({_difference(settings, self._settings)}): delete it or name another folder"
            )
        self._homes = dict(homes)

    def _write_manifest(self) -> None:
        manifest = {"settings": self._settings, "homes": self._homes}
        write_whole(self._folder / MANIFEST, json.dumps(manifest))


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r}, now {now.get(name)!r}" for name in names)
