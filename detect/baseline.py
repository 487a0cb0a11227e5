"""The frequency baseline on a set of pictures, from files to a calibrated detector and its figures.

Learned from, calibrated on and judged on are three parts that no source group crosses, without copies.
"""

from collections.abc import Callable

import numpy as np
import torch

from detect.audit import check_kinds
from detect.calibration import THRESHOLD, calibrate
from detect.equalise import Equaliser
from detect.frequency import FrequencyDetector
from detect.judging import Plan
from detect.layouts import PictureSet
from detect.metrics import Scorecard, scorecard
from detect.reading import Look, Reader
from detect.splits import split_by_group


def fit_frequency(
    pictures: PictureSet,
    *,
    equaliser: Equaliser,
    data: str,
    held_out: float = 0.25,
    judged: float = 0.3,
    progress: Callable[[float], object] = lambda share: None,
) -> tuple[FrequencyDetector, Scorecard]:
    """Fit and calibrate the frequency baseline, and judge it on pictures that neither has seen.

    Args:
        pictures: from `detect.layouts.read_layout`; its own test pictures are judged on, where it has any.
        equaliser: of the codec, or `raw`; applied to every picture, and kept with the detector.
        data: what the pictures are, in words.
        held_out: share of the training groups that are calibrated on.
        judged: share of all groups that are judged on, in a set without splits.
        progress: called with the share of the work that is done.

    Raises:
        LayoutError: fewer than ten pictures of one kind can be read.
        ValueError: too few of one kind are left in one of the three parts.
    """
    reader = Reader(pictures.samples, passes=2, progress=progress)
    looks = reader.look()
    check_kinds([look.sample for look in looks])
    plan = Plan.of(looks)
    described = [each for each in reader.describe(looks, equaliser) if each is not None]
    if len(described) < len(looks):
        raise ValueError("the baseline takes pictures of any size: choose raw or codec-equalised")
    statistics = torch.from_numpy(np.stack([each.statistics for each in described]))
    train, test = _parts(plan, judged)
    roles = np.array(split_by_group(plan.groups, {"learn": 1 - held_out, "calibrate": held_out}, seed=1))
    learn, held = train[roles[train] == "learn"], train[roles[train] == "calibrate"]
    detector = FrequencyDetector()
    detector.learn_statistics(statistics[learn], torch.from_numpy(plan.labels[learn]))
    logits = detector.judge_statistics(statistics).double()
    detector.calibration = calibrate(logits[held].numpy(), plan.labels[held], data=f"held out of {data}")
    detector.trained_on, detector.equaliser, detector.sides = data, equaliser, _sides(looks)
    probabilities = detector.calibration.probabilities(logits).numpy()
    card = scorecard(
        plan.labels[test],
        probabilities[test],
        threshold=THRESHOLD,
        calibration_real=probabilities[held][plan.labels[held] == 0],
        groups=[plan.groups[int(number)] for number in test],
    )
    return detector, card


def _parts(plan: Plan, judged: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the pictures to train on, and of those to judge on."""
    if plan.judge is not None:
        return plan.folds(np.ones(len(plan.samples), dtype=bool))[0]
    roles = np.array(split_by_group(plan.groups, {"train": 1 - judged, "test": judged}))
    return np.flatnonzero(plan.kept & (roles == "train")), np.flatnonzero(plan.kept & (roles == "test"))


def _sides(looks: list[Look]) -> tuple[int, int]:
    sides = [side for look in looks for side in (look.facts.width, look.facts.height)]
    return min(sides), max(sides)
