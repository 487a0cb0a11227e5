"""Backdoors: planted with a known answer, found, measured, and taken out.

`repair(network, images, labels)` is for classifiers; `unlearn.text` for text-to-image models, which the
command line `unlearn` reports on. Importing this package is instant: a name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlearn.inversion import Inverted, scan
    from unlearn.measures import Measures, defence_effectiveness, measure
    from unlearn.repairs import REPAIRS, repair
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
    "defence_effectiveness",
    "measure",
    "poison",
    "remove",
    "repair",
    "scan",
]

_HOMES = {
    "inversion": ("Inverted", "scan"),
    "measures": ("Measures", "defence_effectiveness", "measure"),
    "repairs": ("REPAIRS", "repair"),
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
