"""Keep pictures out of generative models, by bounded changes that spoil what a model makes of them.

>>> from protect import protect_image
>>> protected = protect_image("drawing.png", "mist", eps=8 / 255)        # doctest: +SKIP

The command line `protect` and these names are the same functions. Importing this package is instant: a name
is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from protect.methods import METHODS, UnknownMethodError, create

if TYPE_CHECKING:
    from imaging.batch.discover import PlanError, plan
    from protect.command.batch import Recipe, Record, run
    from protect.method import ProtectionMethod
    from protect.methods.ace import Ace
    from protect.methods.advdm import AdvDM
    from protect.methods.antidreambooth import ASPL, FSMG
    from protect.methods.atkpdm import AtkPDM
    from protect.methods.dct import DctLattice
    from protect.methods.diffusionguard import DiffusionGuard
    from protect.methods.encoder_shift import EncoderShift
    from protect.methods.hspace import HSpace, HSpaceKV
    from protect.methods.instant import Instant
    from protect.methods.mist import Mist
    from protect.methods.photoguard import PhotoGuard
    from protect.methods.photoguard_diffusion import PhotoGuardDiffusion
    from protect.methods.sds import SDS, SDST
    from protect.picture import NothingToProtectError, protect_image
    from protect.pictures import protect_images
    from protect.verify.measures import EditChange, Measurement, edit_change, measure

__all__ = [
    "ASPL",
    "FSMG",
    "METHODS",
    "SDS",
    "SDST",
    "Ace",
    "AdvDM",
    "AtkPDM",
    "DctLattice",
    "DiffusionGuard",
    "EditChange",
    "EncoderShift",
    "HSpace",
    "HSpaceKV",
    "Instant",
    "Measurement",
    "Mist",
    "NothingToProtectError",
    "PhotoGuard",
    "PhotoGuardDiffusion",
    "PlanError",
    "ProtectionMethod",
    "Recipe",
    "Record",
    "UnknownMethodError",
    "create",
    "edit_change",
    "measure",
    "plan",
    "protect_image",
    "protect_images",
    "run",
]

_HOMES = {
    "EditChange": "protect.verify.measures",
    "Measurement": "protect.verify.measures",
    "NothingToProtectError": "protect.picture",
    "PlanError": "imaging.batch.discover",
    "ProtectionMethod": "protect.method",
    "Recipe": "protect.command.batch",
    "Record": "protect.command.batch",
    "edit_change": "protect.verify.measures",
    "measure": "protect.verify.measures",
    "plan": "imaging.batch.discover",
    "protect_image": "protect.picture",
    "protect_images": "protect.pictures",
    "run": "protect.command.batch",
} | {entry.path.partition(":")[2]: entry.path.partition(":")[0] for entry in METHODS.values()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
