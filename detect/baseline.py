"""The frequency baseline on a set of pictures, from files to a calibrated detector and its figures.

Learned from, calibrated on and judged on are three parts that no source group crosses, without copies.
"""

from collections.abc import Callable

import numpy as np
import torch

from detect.calibration import THRESHOLD, calibrate
from detect.equalise import Equaliser
from detect.frequency import FrequencyDetector
from detect.judging import Survey
from detect.layouts import PictureSet
from detect.metrics import Scorecard, scorecard
from detect.reading import Reader


def fit_frequency(
    pictures: PictureSet | Survey,
    *,
    equaliser: Equaliser,
    data: str,
    held_out: float = 0.25,
    judged: float = 0.3,
    progress: Callable[[float], object] = lambda share: None,
) -> tuple[FrequencyDetector, Scorecard]:
    """Fit and calibrate the frequency baseline, and judge it on pictures that neither has seen.

    Args:
        pictures: from `detect.layouts.read_layout`, or surveyed already; its own test pictures are judged on,
            where it has any.
        equaliser: of the codec, or `raw`; applied to every picture, and kept with the detector.
        data: what the pictures are, in words.
        held_out: share of the training groups that are calibrated on.
        judged: share of all groups that are judged on, in a set without splits.
        progress: called with the share of the work that is done.

    Raises:
        LayoutError: fewer than ten pictures of one kind can be read.
        ValueError: too few of one kind are left in one of the three parts.
    """
    surveyed = pictures if isinstance(pictures, Survey) else Survey.of(pictures)
    looks, plan = surveyed.looks, surveyed.plan
    described = [each for each in Reader(len(looks), progress).describe(looks, equaliser) if each is not None]
    if len(described) < len(looks):
        raise ValueError("the baseline takes pictures of any size: choose raw or codec-equalised")
    statistics = torch.from_numpy(np.stack([each.statistics for each in described]))
    parts = plan.parts(held_out=held_out, judged=judged)
    held, test = parts.calibrate, parts.judge
    detector = FrequencyDetector()
    detector.learn_statistics(statistics[parts.learn], torch.from_numpy(plan.labels[parts.learn]))
    logits = detector.judge_statistics(statistics).double()
    detector.calibration = calibrate(logits[held].numpy(), plan.labels[held], data=f"held out of {data}")
    detector.trained_on, detector.equaliser, detector.sides = data, equaliser, surveyed.sides
    probabilities = detector.calibration.probabilities(logits).numpy()
    card = scorecard(
        plan.labels[test],
        probabilities[test],
        threshold=THRESHOLD,
        calibration_real=probabilities[held][plan.labels[held] == 0],
        groups=[plan.groups[int(number)] for number in test],
    )
    return detector, card
