"""The table of purifiers by name: what each is and where it lives.

Nothing heavy is imported here, so that a command line can list them at once.
"""

import importlib
import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion.model import DiffusionModel
    from purify.purifier import Purifier


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    path: str
    """`module:Class`."""
    summary: str
    needs_model: bool = True


METHODS: dict[str, Entry] = {
    "diffpure": Entry("purify.diffpure:DiffPure", "noise, then denoise with a diffusion model"),
    "gridpure": Entry("purify.sizes:GridPure", "a little of that again and again, in overlapping tiles"),
    "gdmp": Entry("purify.guided:GDMP", "as diffpure, pulled towards the input at every step"),
    "freqpure": Entry("purify.frequency:FreqPure", "as diffpure, keeping the input's low frequencies"),
    "mani-pure": Entry("purify.frequency:ManiPure", "as freqpure, with noise shaped by the input's spectrum"),
    "likelihood": Entry("purify.likelihood:LikelihoodMaximisation", "walk uphill on the model's likelihood"),
    "jpeg": Entry("purify.simple:Jpeg", "save as JPEG and read again", needs_model=False),
    "resize": Entry("purify.simple:Resize", "shrink and enlarge again", needs_model=False),
    "blur": Entry("purify.simple:Blur", "blur a little", needs_model=False),
    "crop": Entry("purify.simple:Crop", "cut the borders away and enlarge", needs_model=False),
    "noise": Entry("purify.simple:Noise", "add Gaussian noise", needs_model=False),
    "quantize": Entry("purify.simple:Quantize", "round to fewer levels", needs_model=False),
    "adverse-cleaner": Entry(
        "purify.simple:AdverseCleaner", "repeated bilateral and guided filters", needs_model=False
    ),
}


class UnknownMethodError(ValueError):
    """A name that is not in the table."""


def entry(name: str) -> Entry:
    """Return a row of the table.

    Raises UnknownMethodError with the nearest name.
    """
    if name.lower() in METHODS:
        return METHODS[name.lower()]
    raise UnknownMethodError(unknown("method", name, list(METHODS)))


def unknown(what: str, name: str, available: list[str]) -> str:
    """Return the message for a name that is not one of `available`."""
    near = get_close_matches(name.lower(), available, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}; {hint}available: {', '.join(available)}"


def options(name: str) -> dict[str, Any]:
    """Return what a person can set, with defaults."""
    row = entry(name)
    parameters = inspect.signature(_class(row).__init__).parameters.values()
    own = [each for each in parameters if each.name not in ("self", "model", "clamp", "condition")]
    return {each.name: each.default for each in own}


def create(name: str, model: "DiffusionModel | None" = None, **settings: Any) -> "Purifier":
    """Build the purifier of this name.

    Raises UnknownMethodError, and ValueError for settings that it does not have, or no model where it needs
    one.
    """
    row = entry(name)
    wrong = [setting for setting in settings if setting not in options(name)]
    if wrong:
        available = ", ".join(options(name)) or "none"
        raise ValueError(f"{name} has no setting {wrong[0]!r}; available: {available}")
    if not row.needs_model:
        return _class(row)(**settings)
    if model is None:
        raise ValueError(f"{name} needs a diffusion model")
    return _class(row)(model, **settings)


def _class(row: Entry) -> Any:
    module, _, name = row.path.partition(":")
    return getattr(importlib.import_module(module), name)
