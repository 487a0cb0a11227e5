"""Purifying images before they are used: randomised layers that go in front of any classifier.

`nn.Sequential(DiffPure(load("cifar10")), classifier)` is a whole defence; how much it is worth is for
`attacks.adaptive` and `attacks.evaluate` to say. `purify_image` takes whole pictures, as the command line
`purify` does. Importing this package is instant: a name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purify.chain import Chain
    from purify.classifier import Decision, PurifiedClassifier
    from purify.diffpure import PRESETS, DiffPure
    from purify.frequency import FreqPure, ManiPure
    from purify.guided import GDMP
    from purify.likelihood import LikelihoodMaximisation
    from purify.methods import METHODS, create
    from purify.picture import purify_image
    from purify.purifier import Purifier
    from purify.simple import AdverseCleaner, Blur, Crop, Jpeg, Noise, Quantize, Resize, Transform
    from purify.sizes import GridPure, Resized, Tiled

__all__ = [
    "GDMP",
    "METHODS",
    "PRESETS",
    "AdverseCleaner",
    "Blur",
    "Chain",
    "Crop",
    "Decision",
    "DiffPure",
    "FreqPure",
    "GridPure",
    "Jpeg",
    "LikelihoodMaximisation",
    "ManiPure",
    "Noise",
    "PurifiedClassifier",
    "Purifier",
    "Quantize",
    "Resize",
    "Resized",
    "Tiled",
    "Transform",
    "create",
    "purify_image",
]

_HOMES = {
    "chain": ("Chain",),
    "classifier": ("Decision", "PurifiedClassifier"),
    "diffpure": ("PRESETS", "DiffPure"),
    "frequency": ("FreqPure", "ManiPure"),
    "guided": ("GDMP",),
    "likelihood": ("LikelihoodMaximisation",),
    "methods": ("METHODS", "create"),
    "picture": ("purify_image",),
    "purifier": ("Purifier",),
    "simple": ("AdverseCleaner", "Blur", "Crop", "Jpeg", "Noise", "Quantize", "Resize", "Transform"),
    "sizes": ("GridPure", "Resized", "Tiled"),
}
_HOME_OF = {name: f"purify.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
