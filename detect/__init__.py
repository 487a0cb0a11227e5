"""Is this picture generated? Detectors, their calibration, and the audit of what they are judged on.

`load("folder").predict_proba(images)` answers with calibrated probabilities; the command line `detect` takes
whole files. `detect.audit` asks of a set of pictures whether it could be told apart without looking at them,
`detect.dire` holds the features that a diffusion model gives. Importing this package is instant: a name is
loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detect.cache import FeatureCache
    from detect.calibration import Calibration
    from detect.clip import ClipDetector
    from detect.cnndetection import CnnDetector
    from detect.detector import Detector, create, load
    from detect.distildire import DireDetector, DistilDireDetector
    from detect.equalise import Equaliser
    from detect.estimator import DetectorEstimator
    from detect.frequency import FrequencyDetector
    from detect.npr import NprDetector
    from detect.reconstruction import ReconstructionDetector

__all__ = [
    "Calibration",
    "ClipDetector",
    "CnnDetector",
    "Detector",
    "DetectorEstimator",
    "DireDetector",
    "DistilDireDetector",
    "Equaliser",
    "FeatureCache",
    "FrequencyDetector",
    "NprDetector",
    "ReconstructionDetector",
    "create",
    "load",
]

_HOMES = {
    "cache": ("FeatureCache",),
    "calibration": ("Calibration",),
    "clip": ("ClipDetector",),
    "cnndetection": ("CnnDetector",),
    "detector": ("Detector", "create", "load"),
    "distildire": ("DireDetector", "DistilDireDetector"),
    "equalise": ("Equaliser",),
    "estimator": ("DetectorEstimator",),
    "frequency": ("FrequencyDetector",),
    "npr": ("NprDetector",),
    "reconstruction": ("ReconstructionDetector",),
}
_HOME_OF = {name: f"detect.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
