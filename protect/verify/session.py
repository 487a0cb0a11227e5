"""One run of `protect --verify` without its terminal: what is read and checked, judged, told and written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffusion.choice import Precision, network_precision
from diffusion.model import DiffusionModel
from imaging.batch.discover import Job, Plan
from imaging.batch.reports import is_report, write_report
from imaging.batch.saving import check_extras, is_sheet, write_sheet
from imaging.formats import format_of
from imaging.io import read
from imaging.perceptual import Lpips
from imaging.picture import Picture
from imaging.sheet import Row, contact_sheet
from imaging.tiles import Box
from protect.command.report import centre
from protect.picture import Where, read_mask
from protect.threats import create
from protect.threats.threat import Mask
from protect.verify.measures import measure
from protect.verify.thief import CounterMeasure, Thief
from protect.verify.verification import (
    HEADINGS,
    Finding,
    Verification,
    check_pair,
    closing,
    described,
    findings,
    line,
    opening,
)

FIRST_SEED = 1000
"""Far from those that people protect with, whose noise a protection has met."""


@dataclass(frozen=True, eq=False)
class Case:
    """Two files, read and found to be an original and its protected version."""

    paths: tuple[str, str]
    original: Picture
    protected: Picture
    kept: Where | None
    """What an inpainting thief keeps."""
    lpips: Lpips | None


def prepare(
    paths: Sequence[str],
    *,
    mask: str | None,
    lpips: str | None,
    extras: tuple[str | None, str | None],
    overwrite: bool = False,
) -> Case:
    """Read the pictures and make sure that report and sheet can be written and replace no input, and without
    `overwrite` nothing but their like.

    Raises ValueError or OSError with a sentence.
    """
    if len(paths) != 2:
        raise ValueError(f"two pictures are compared, ORIGINAL and PROTECTED; got {len(paths)}")
    given = [Path(path) for path in paths]
    report, sheet = extras
    if sheet is not None:
        format_of(sheet)
    kinds = {"--report": (report, partial(is_report, kind=Verification)), "--sheet": (sheet, is_sheet)}
    check_extras(Plan([Job(*given)]), kinds, others=(mask, lpips), overwrite=overwrite)
    original, protected = (read(path) for path in given)
    check_pair(original, protected)
    kept = None if mask is None else _kept(mask, original)
    distance = None if lpips is None else Lpips.from_file(lpips)
    return Case((paths[0], paths[1]), original, protected, kept, distance)


def _kept(mask: str, picture: Picture) -> Where:
    where = read_mask(mask)
    if where.shape[-2:] != picture.integers.shape[-2:]:
        expected, came = (f"{each.shape[-1]} x {each.shape[-2]} px" for each in (picture.integers, where))
        raise ValueError(f"--mask: the mask is {came} and the picture {expected}; save it at the same size")
    if where.all():
        raise ValueError("--mask: the mask is white everywhere; paint black what a thief would repaint")
    return where


def thieves(
    case: Case,
    names: Sequence[str],
    load: Callable[[bool], DiffusionModel],
    *,
    settings: Mapping[str, Any],
    seeds: int,
    precision: Precision,
) -> dict[str, Thief]:
    """Make a thief of each threat.

    Args:
        case: what they are after.
        names: of threats, as `protect.threats.create` takes them.
        load: returns his model; told whether one that is made for inpainting serves best.
        settings: fields of the threats, set for all that have them; None is left out.
        seeds: number of draws of noise.
        precision: of the networks.

    Raises:
        ValueError: a model cannot do this, a setting is out of range, or inpainting has no mask.
    """
    threats = {name: create(name) for name in names}
    for name, threat in threats.items():
        if threat.inpaints and case.kept is None:
            raise ValueError(
                f"{name} needs --mask FILE: a picture of the same size, white on what the thief keeps,"
                " such as a face, and black on what he repaints"
            )
    models = {name: load(threat.inpaints) for name, threat in threats.items()}
    given = {key: value for key, value in settings.items() if value is not None}
    box, found = _shown(case, models.values()), {}
    for name, threat in threats.items():
        model, own = models[name], {key: value for key, value in given.items() if hasattr(threat, key)}
        threat.check(model)
        if threat.inpaints:
            own["mask"] = _repainted(case, box)
        found[name] = Thief(
            replace(threat.suited(model), **own),
            model,
            range(FIRST_SEED, FIRST_SEED + seeds),
            network_precision(precision, model.device),
        )
    return found


def _shown(case: Case, models: Iterable[DiffusionModel]) -> Box:
    """The part of the pictures that all of the models can hold at full resolution."""
    return centre(case.original, min(model.comfortable for model in models))


def _repainted(case: Case, box: Box) -> Mask:
    assert case.kept is not None
    mask = (~case.kept[..., box.top : box.bottom, box.left : box.right]).float()
    if not mask.any():
        raise ValueError(
            f"--mask: nothing is black in the centre of the picture, {box.width} x {box.height} px, which is"
            " what the model is given"
        )
    return mask


def judge(
    case: Case,
    thieves: Mapping[str, Thief],
    counter_measures: Mapping[str, CounterMeasure],
    say: Callable[[str], object],
    *,
    report: str | None = None,
    sheet: str | None = None,
) -> None:
    """Measure, tell as it goes, and write report and sheet. Raises OSError or ValueError with a sentence."""
    box = _shown(case, [thief.model for thief in thieves.values()])
    original, protected = (each.frame(0).region(box).pixels for each in (case.original, case.protected))
    measured = measure(case.original, case.protected)
    found = Verification(
        *case.paths,
        shown=_told(case.original, box),
        seeds=tuple(next(iter(thieves.values())).seeds),
        linf=measured.linf,
        psnr=measured.psnr,
        ssim=measured.ssim,
        lpips=None if case.lpips is None else case.lpips(protected, original).item(),
        changed=measured.changed,
        survival=measured.survival,
        threats={name: described(thief) for name, thief in thieves.items()},
    )
    for text in opening(found):
        say(text)
    rows: list[Row] = []
    made: list[Finding] = []
    for one in findings(
        thieves,
        counter_measures,
        original,
        protected,
        levels=case.original.levels,
        lpips=case.lpips,
        shown=rows.append,
    ):
        say(line(one))
        made.append(one)
    for text in closing(made):
        say(text)
    if report is not None:
        write_report([replace(found, findings=tuple(made))], Path(report))
    if sheet is not None:
        write_sheet(contact_sheet(rows, HEADINGS), Path(sheet))


def _told(picture: Picture, box: Box) -> str:
    size = f"{picture.width} x {picture.height} px"
    whole = (box.height, box.width) == (picture.height, picture.width)
    part = "the whole picture" if whole else f"the centre, {box.width} x {box.height} px, of {size}"
    return part if picture.frames == 1 else f"{part}, of the first of {picture.frames} frames"
