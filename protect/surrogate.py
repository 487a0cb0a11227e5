"""The models that a protection is made against: chosen by name, loaded as far as a method needs them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.cache import reachable
from diffusion.choice import Choice, Device, Precision, choose, pick_device
from diffusion.known import KNOWN, MissingWeightsError
from diffusion.load import available, fetch
from diffusion.model import DiffusionModel
from protect.generator import Origin
from protect.method import ProtectionMethod
from protect.stand_in import StandIn

TINY = ("taesd", "taesdxl", "taesd3", "taef1")
"""What "tiny" stands for: distilled stand-ins for the autoencoders of SD 1 and 2, SDXL, SD 3 and FLUX.1."""

Name = str | os.PathLike[str]
Names = Name | Sequence[Name]
"""One name, several with commas between them, or a list."""


@dataclass(frozen=True)
class Surrogates:
    """One model, or several to be protected against together, chosen and not yet loaded."""

    members: tuple[Choice, ...]
    reason: str = ""
    """Why these, where nobody named them."""
    digest: str = ""
    """Of the method's own network, where these are what it was trained against."""

    @property
    def label(self) -> str:
        """The name for people, such as "sd15+sdxl"."""
        return "+".join(member.label for member in self.members)

    @property
    def identity(self) -> str:
        """A name that changes with the weights of any member, or of the method's own network."""
        return self.digest or "+".join(member.identity for member in self.members)


def choose_for(method: ProtectionMethod, model: Names = "auto", *, offline: bool = False) -> Surrogates:
    """Choose by name, or by several with commas between them or in a list; "tiny" stands for `TINY`.

    "auto" is the best full model on this computer. Without one, a method that needs no denoiser gets "tiny"
    if that is here or can be fetched, which is not tried with `offline` or under HF_HUB_OFFLINE; what is left
    is the built-in model. A method with a network of its own is given what that was trained against.

    Raises ValueError for a list with a gap, "auto" beside other names, a model that is named twice, or one
    that is named for a method with a network of its own.
    """
    words = _words(model)
    if method.origin is not None:
        return _trained_against(method.origin, words)
    if words == ["auto"]:
        return _automatic(method, offline)
    if not words or "" in words:
        raise ValueError(f"a list of models has a name between any two commas; got {model!r}")
    if "auto" in words:
        raise ValueError("the model 'auto' chooses by itself; leave it out, or name it alone")
    names = [name for word in words for name in (TINY if word == "tiny" else (word,))]
    chosen = Surrogates(tuple(choose(name) for name in names))
    identities = [member.identity for member in chosen.members]
    twice = [name for index, name in enumerate(names) if identities[index] in identities[:index]]
    if twice:
        raise ValueError(f"the model {twice[0]!r} is named twice; name each member once")
    return chosen


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

    A method with a network of its own needs nothing of it and gets a stand-in.

    Raises UnknownModelError and MissingWeightsError (see `diffusion.load`), ValueError when the model lacks
    what the method needs.
    """
    if method.origin is not None and not whole:
        return StandIn().to(pick_device(device))
    denoiser = method.needs_denoiser or whole
    model = choice.load(device=device, precision=precision, offline=offline, denoiser=denoiser)
    method.check(model)
    return model


def _words(model: Names) -> list[str]:
    if not isinstance(model, (str, os.PathLike)):
        return [os.fspath(each) for each in model]
    name = os.fspath(model)
    whole = name in KNOWN or Path(name).expanduser().exists()  # a folder's name may hold a comma
    return [name] if whole else [part.strip() for part in name.split(",")]


def _trained_against(origin: Origin, words: list[str]) -> Surrogates:
    names = " and ".join(origin.surrogates)
    if words != ["auto"]:
        raise ValueError(
            f"this method runs a network that was trained against {names}, and no model; leave --model out"
        )
    members = tuple(map(Choice, origin.surrogates))
    return Surrogates(members, "what its network was trained against", origin.digest)


def _automatic(method: ProtectionMethod, offline: bool) -> Surrogates:
    best = choose("auto", inpainting=method.needs_inpainting)
    if KNOWN[best.name].hub is not None:
        return Surrogates((best,), "the first full model that is on this computer")
    none = "no full model is on this computer"
    if method.needs_denoiser:
        return Surrogates((best,), none)
    if all(available(name, denoiser=False) for name in TINY):
        return Surrogates(tuple(map(Choice, TINY)), f"{none}, but these stand-ins for four of them")
    if offline or not _fetched():
        return Surrogates((best,), f"{none}, and the stand-ins of --model tiny could not be fetched")
    return Surrogates(tuple(map(Choice, TINY)), f"{none}; these stand-ins for four of them were fetched")


def _fetched() -> bool:
    """Fetch the tiny autoencoders, 10 MB each, if the hub answers at once; whether they are here then."""
    if not reachable():
        return False
    try:
        for name in TINY:
            fetch(name, denoiser=False)
    except MissingWeightsError:
        return False
    return True
