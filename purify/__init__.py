"""Purifying images before they are used: randomised layers that go in front of any classifier.

`nn.Sequential(DiffPure(load("cifar10")), classifier)` is a whole defence. How much it is worth is for
`attacks.adaptive` and `attacks.evaluate` to say.
"""

from purify.classifier import Decision, PurifiedClassifier
from purify.diffpure import PRESETS, DiffPure
from purify.frequency import FreqPure, ManiPure
from purify.guided import GDMP
from purify.likelihood import LikelihoodMaximisation
from purify.purifier import Purifier
from purify.simple import AdverseCleaner, Blur, Jpeg, Quantize, Resize, Transform
from purify.sizes import Resized, Tiled

__all__ = [
    "GDMP",
    "PRESETS",
    "AdverseCleaner",
    "Blur",
    "Decision",
    "DiffPure",
    "FreqPure",
    "Jpeg",
    "LikelihoodMaximisation",
    "ManiPure",
    "PurifiedClassifier",
    "Purifier",
    "Quantize",
    "Resize",
    "Resized",
    "Tiled",
    "Transform",
]
