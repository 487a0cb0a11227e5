"""Pictures of a benchmark with their protected versions, each made once and kept as a file."""

import hashlib
import json
import re
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.choice import network_precision
from diffusion.model import DiffusionModel
from experiments.inpainting import SEEN, outlines
from experiments.protection import CONTROL, random_signs, square, variant
from imaging import metrics
from imaging.io import read, write
from imaging.perceptual import Lpips
from imaging.picture import Picture
from imaging.quantize import quantize
from protect.collective import CollectiveMethod
from protect.method import ProtectionMethod


@dataclass(frozen=True)
class Visible:
    """What is seen of a protected picture, and what it took to make."""

    picture: str
    method: str
    linf: float
    psnr: float
    ssim: float
    lpips: float | None
    seconds: float


@dataclass(frozen=True)
class Budget:
    """What every method may do, on squares of `side` pixels; `eps` is for a range of 1."""

    side: int
    eps: float
    steps: int


class Gallery:
    """Pictures brought to one size; whatever is made of them is written to a folder and read back."""

    def __init__(
        self,
        paths: Sequence[Path],
        model_for: Callable[[ProtectionMethod], DiffusionModel],
        budget: Budget,
        folder: Path,
        *,
        identity: str = "",
        together: int = 4,
        lpips: Lpips | None = None,
    ) -> None:
        """Read the pictures.

        Args:
            paths: of pictures whose names differ.
            model_for: returns the surrogate of a method.
            budget: see `Budget`.
            folder: where versions are kept.
            identity: of the surrogates; versions made with others are not taken for these.
            together: how many pictures, in their order, a method that learns from several is given.
            lpips: measures the perceptual distance, too.
        """
        self.originals = {path.stem: square(path, budget.side) for path in paths}
        if len(self.originals) < len(paths):
            raise ValueError("two of the pictures have one name; rename one of them")
        self._model_for, self._budget, self._folder = model_for, budget, folder
        self._identity, self._together, self._lpips = identity, together, lpips

    def method(self, name: str) -> ProtectionMethod:
        """The method that words name, options included, with the common budget where they do not say."""
        return variant(name, eps=self._budget.eps, steps=self._budget.steps)

    def digest(self, name: str) -> str:
        """A short word for what the versions of a method, or the control, depend on beside the picture."""
        made = "" if name == CONTROL else repr(self.method(name))
        told = f"{self._budget} {self._identity if made else ''} {made} {self._together}"
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def outlines(self, picture: str) -> dict[str, Tensor]:
        """The owner's mask of a figure in a picture, 1 inside, and those of thieves who see the same one."""
        return outlines(self._budget.side, zlib.crc32(picture.encode()))

    def version(self, picture: str, method: str) -> Tensor:
        """What is in the file of a picture that a method has protected, or of the control."""
        if not self._path(picture, method).exists():
            self._make(picture, method)
        return read(self._path(picture, method)).pixels

    def visible(self, picture: str, method: str) -> Visible:
        """What was measured of a version that has been made."""
        return Visible(**json.loads(self._path(picture, method).with_suffix(".json").read_text()))

    def _path(self, picture: str, method: str) -> Path:
        name = "control" if method == CONTROL else re.sub(r"[^\w.]+", "-", method)
        return self._folder / picture / f"{name}-{self.digest(method)}.png"

    def _make(self, picture: str, name: str) -> None:
        if name == CONTROL:
            original = self.originals[picture]
            self._save(picture, name, random_signs(original, self._budget.eps), 0.0)
            return
        method, names = self.method(name), [picture]
        if isinstance(method, CollectiveMethod):
            everything = list(self.originals)
            first = everything.index(picture) // self._together * self._together
            names = everything[first : first + self._together]
        start = time.perf_counter()
        made = self._protected(method, names)
        seconds = (time.perf_counter() - start) / len(names)
        for one, image in zip(names, made, strict=True):
            self._save(one, name, quantize(image.cpu(), self.originals[one], method.eps), seconds)

    def _protected(self, method: ProtectionMethod, names: Sequence[str]) -> Sequence[Tensor]:
        model = self._model_for(method)
        images = [self.originals[name].to(model.device) for name in names]
        masks = [self.outlines(name)[SEEN].to(model.device) if method.needs_mask else None for name in names]
        options: dict[str, Any] = {
            "generator": torch.Generator().manual_seed(0),
            "precision": network_precision("auto", model.device),
        }
        if isinstance(method, CollectiveMethod):
            return method.protect_set(images, model, masks=masks, **options)
        return [method.protect(images[0], model, mask=masks[0], **options)]

    def _save(self, picture: str, method: str, image: Tensor, seconds: float) -> None:
        """Write a picture whole or not at all, after what is measured of it."""
        original, path = self.originals[picture], self._path(picture, method)
        linf, psnr, ssim = (
            float(each(image, original)) for each in (metrics.linf, metrics.psnr, metrics.ssim)
        )
        apart = None if self._lpips is None else float(self._lpips(image, original))
        path.parent.mkdir(parents=True, exist_ok=True)
        told = Visible(picture, method, linf, psnr, ssim, apart, round(seconds, 2))
        path.with_suffix(".json").write_text(json.dumps(asdict(told)) + "\n")
        partial = path.with_suffix(".part.png")
        write(Picture.from_pixels(image), partial, overwrite=True)
        partial.replace(path)
