"""Backdoors in classifiers: planted with a known answer, measured, and taken out."""

from unlearn.measures import Measures, defence_effectiveness, measure
from unlearn.repairs import REPAIRS, repair
from unlearn.triggers import Additive, Blended, Patch, Sinusoid, Trigger, Warp, poison

__all__ = [
    "REPAIRS",
    "Additive",
    "Blended",
    "Measures",
    "Patch",
    "Sinusoid",
    "Trigger",
    "Warp",
    "defence_effectiveness",
    "measure",
    "poison",
    "repair",
]
