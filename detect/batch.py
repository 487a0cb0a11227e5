"""Many picture files through a detector, with a record of each."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from detect.detector import Detector
from detect.facts import Examined, examine
from detect.heat import overlay
from detect.record import Record
from imaging.batch.discover import Job, Plan
from imaging.batch.mark import fingerprint, marked
from imaging.batch.runner import explain, is_done
from imaging.io import write
from imaging.picture import Images, Picture

_HEAT_SIDE = 2048


@dataclass(frozen=True)
class Wishes:
    """What is wanted beside the answer."""

    heatmaps: bool = False
    explanations: bool = False


def run(
    plan: Plan,
    detector: Detector,
    *,
    wishes: Wishes = Wishes(),
    earlier: Iterable[Record] = (),
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[Job, float], object] = lambda job, share: None,
    failed: Callable[[Exception], object] | None = None,
) -> Iterator[Record]:
    """Judge every picture of a plan and yield its record; no failure stops the others.

    Args:
        plan: from `detect.inputs.pictures_of`.
        detector: calibrated.
        wishes: what is wanted beside the answer.
        earlier: records of an earlier run, from `read_records`; where the file, the detector and what is
            wanted are the same, they stand.
        overwrite: replace files that lie where heatmaps go and are not those of this picture and detector.
        device: where the detector is.
        progress: called with a job and the share of it that is done.
        failed: called with the exception behind a failure.

    Raises:
        DetectorError: the detector is not calibrated, or has no heatmap where one is wanted.
    """
    identity = (detector.identity, detector.calibrated().identity)
    known = {record.sha256: record for record in earlier if record.sha256 is not None}
    for problem in plan.problems:
        yield Record(problem.input, "failed", problem.reason)
    for job in plan.jobs:
        started = time.monotonic()
        try:
            record = _known(job, known, identity, wishes)
            record = record or _judged(job, detector, identity, wishes, overwrite, device)
        except Exception as error:
            if failed is not None:
                failed(error)
            record = Record(str(job.input), "failed", explain(error, job.input))
        progress(job, 1.0)
        yield replace(record, seconds=round(time.monotonic() - started, 3))


def _known(
    job: Job, earlier: Mapping[str, Record], identity: tuple[str, str], wishes: Wishes
) -> Record | None:
    """The record of an earlier run that says all that is wanted, under this picture's path."""
    if not earlier:
        return None
    record = earlier.get(hashlib.sha256(job.input.read_bytes()).hexdigest())
    if record is None or (record.model_id, record.calibration_id) != identity:
        return None
    lacking = wishes.explanations and not record.explanation
    if wishes.heatmaps and not (record.heatmap_path == str(job.output) and job.output.exists()):
        lacking = True
    return None if lacking else replace(record, path=str(job.input), status="skipped")


def _judged(
    job: Job,
    detector: Detector,
    identity: tuple[str, str],
    wishes: Wishes,
    overwrite: bool,
    device: torch.device | str,
) -> Record:
    examined = examine(job.input)
    mark = fingerprint(examined.sha256.encode(), {"heatmap": identity[0]})
    drawn = wishes.heatmaps and is_done(job, mark, overwrite=overwrite)
    images = (detector.equaliser(examined.images).pixels[None] / 255).to(device)
    calibration, facts = detector.calibrated(), examined.facts
    logit = detector.scores(images)
    probability = float(calibration.probabilities(logit)[0])
    warnings, outside = _warnings(examined, detector)
    if wishes.heatmaps and not drawn:
        _draw(job, detector, images, mark, overwrite=overwrite)
    return Record(
        path=str(job.input),
        status="done",
        sha256=examined.sha256,
        width=facts.width,
        height=facts.height,
        format=facts.format,
        jpeg_quality_estimate=facts.quality,
        logit=float(logit[0]),
        prob_fake=probability,
        label="unsure" if outside else calibration.verdict(probability),
        threshold=(calibration.real_below, calibration.generated_from),
        calibration_id=identity[1],
        model_id=identity[0],
        preprocessing_id=detector.equaliser.identity,
        heatmap_path=str(job.output) if wishes.heatmaps else None,
        explanation=detector.explain(images) if wishes.explanations else [],
        warnings=warnings,
    )


def _warnings(examined: Examined, detector: Detector) -> tuple[list[str], bool]:
    """What speaks against the answer, and whether the picture is outside of what was fitted to."""
    picture, facts = examined.picture, examined.facts
    found = list(picture.notes)
    if picture.frames > 1:
        found.append(f"only the first of its {picture.frames} frames was looked at")
    if picture.alpha is not None:
        found.append("transparent parts were laid on white")
    shortest, longest = detector.sides or (0, 10**9)
    outside = not shortest <= min(facts.width, facts.height) <= max(facts.width, facts.height) <= longest
    if outside:
        size = f"{shortest} px" if shortest == longest else f"{shortest} to {longest} px"
        found.append(f"it is {facts.width} x {facts.height} px, and the detector was fitted to {size}")
    return found, outside


def _draw(job: Job, detector: Detector, images: Images, mark: str, *, overwrite: bool) -> None:
    """Write the heatmap of a picture, of its centre where it is very large."""
    top, left = (max(0, side - _HEAT_SIDE) // 2 for side in images.shape[-2:])
    part = images[..., top : top + _HEAT_SIDE, left : left + _HEAT_SIDE]
    with torch.no_grad():
        drawn = overlay(part, detector.heatmap(part)).cpu()
    job.output.parent.mkdir(parents=True, exist_ok=True)
    write(marked(Picture.from_pixels(drawn), mark, job.output), job.output, overwrite=overwrite)


def read_records(path: Path) -> list[Record]:
    """Return the records of an earlier report; none without a file.

    Raises ValueError for a file that is no report of `detect`.
    """
    if not path.exists():
        return []
    known = {each.name for each in fields(Record)}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise TypeError("a report is a list")
        return [Record(**{name: row[name] for name in known}) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is no report of detect: name another file, or --overwrite replaces it"
        ) from error
