"""Backdoors: planted with a known answer, found, measured, and taken out.

`repair(network, images, labels)` is for classifiers; `unlearn.text` for text-to-image models, which the
command line `unlearn` reports on; `unlearn.noise` for diffusion models that noise with a trigger opens.
Importing this package is instant: a name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlearn.inversion import Inverted, scan
    from unlearn.measures import Measures, defence_effectiveness, measure
    from unlearn.noise import box, plant_noise, shift_of
    from unlearn.noise_repair import remove_noise
    from unlearn.repairs import REPAIRS, repair
    from unlearn.text.encoder import plant_meaning, restore_meaning
    from unlearn.text.reactivation import Reactivation
    from unlearn.text.removal import Esd, FineTuning, SkdCag, remove
    from unlearn.text.scan import DivergenceScan
    from unlearn.text.triggers import Homoglyph, Prefix
    from unlearn.triggers import Additive, Blended, Patch, Sinusoid, Trigger, Warp, poison

__all__ = [
    "REPAIRS",
    "Additive",
    "Blended",
    "DivergenceScan",
    "Esd",
    "FineTuning",
    "Homoglyph",
    "Inverted",
    "Measures",
    "Patch",
    "Prefix",
    "Reactivation",
    "Sinusoid",
    "SkdCag",
    "Trigger",
    "Warp",
    "box",
    "defence_effectiveness",
    "measure",
    "plant_meaning",
    "plant_noise",
    "poison",
    "remove",
    "remove_noise",
    "repair",
    "restore_meaning",
    "scan",
    "shift_of",
]

_HOMES = {
    "inversion": ("Inverted", "scan"),
    "measures": ("Measures", "defence_effectiveness", "measure"),
    "noise": ("box", "plant_noise", "shift_of"),
    "noise_repair": ("remove_noise",),
    "repairs": ("REPAIRS", "repair"),
    "text.encoder": ("plant_meaning", "restore_meaning"),
    "text.reactivation": ("Reactivation",),
    "text.removal": ("Esd", "FineTuning", "SkdCag", "remove"),
    "text.scan": ("DivergenceScan",),
    "text.triggers": ("Homoglyph", "Prefix"),
    "triggers": ("Additive", "Blended", "Patch", "Sinusoid", "Trigger", "Warp", "poison"),
}
_HOME_OF = {name: f"unlearn.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
