"""A protected file judged: what is in it, how much of it is seen, and what a thief makes of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import fmean

from imaging.picture import Images, Picture
from imaging.sheet import Row, magnified
from protect.promise import NO_GUARANTEE
from protect.verify.thief import (
    Change,
    Comparison,
    CounterMeasure,
    Distance,
    Thief,
    change,
    control,
    outcomes,
)

CONTROL, PROTECTED = "control", "protected"
PAIRS = {
    "damage": "1 - SSIM of edit(counter(protected)) and edit(counter(original))",
    "control": "1 - SSIM of edit(counter(control)) and edit(counter(original)); the control is the original"
    " with random signs times the largest change, rounded alike",
    "short": "1 - SSIM of edit(counter(protected)) and edit(original)",
    "price": "1 - SSIM of edit(counter(original)) and edit(original)",
    "drift": "1 - SSIM of edit(counter(protected)) and original",
    "natural_drift": "1 - SSIM of edit(counter(original)) and original: what an edit does anyway",
}
"""Which two pictures each figure compares."""
_HANDLED = {"jpeg75": "JPEG 75", "half_size": "half size", "blur": "blur"}
HEADINGS = (
    "original",
    "protected",
    "edit of original",
    "edit of protected",
    "their difference x 8",
    "edit of control",
)


@dataclass(frozen=True)
class Finding:
    """What one threat makes of the protected picture behind one counter-measure: means over seeds."""

    threat: str
    model: str
    counter_measure: str
    damage: float
    """See `PAIRS` for what is compared."""
    control: float
    ratio: float | None
    """Damage in multiples of the control's; None where the control does none."""
    psnr: float
    """In dB, of the pair of `damage`; lower is better for the owner."""
    lpips: float | None
    kept: float | None = None
    """Damage as a share of that without a counter-measure."""
    short: float | None = None
    """None where the counter-measure shifts the picture, as do the next."""
    price: float | None = None
    drift: float | None = None
    natural_drift: float | None = None


@dataclass(frozen=True)
class Verification:
    """Everything that was found out about a pair of files; the record of `--report`."""

    original: str
    protected: str
    shown: str
    """Which part of the pictures the thief was given."""
    seeds: tuple[int, ...]
    linf: float
    """Largest change of any value of the decoded file, in 1/255."""
    psnr: float
    ssim: float
    lpips: float | None
    changed: float
    """Share of pixels that changed."""
    survival: dict[str, float]
    """Share of the change that ordinary handling leaves."""
    threats: dict[str, str]
    """Settings, by name."""
    findings: tuple[Finding, ...] = ()
    pairs: dict[str, str] = field(default_factory=lambda: PAIRS)


def check_pair(original: Picture, protected: Picture) -> None:
    """Raise ValueError for pictures that are no original and its protected version."""
    if original.integers.shape != protected.integers.shape:
        one, other = (f"{p.width} x {p.height} px in {p.frames} frame(s)" for p in (original, protected))
        raise ValueError(f"the original has {one} and the protected picture {other}; they must agree")
    if original.levels == protected.levels and original.integers.equal(protected.integers):
        raise ValueError("the two pictures are identical: nothing is protected")


def findings(
    thieves: Mapping[str, Thief],
    counter_measures: Mapping[str, CounterMeasure],
    original: Images,
    protected: Images,
    *,
    levels: int = 255,
    lpips: Distance | None = None,
    shown: Callable[[Row], object] = lambda row: None,
) -> Iterator[Finding]:
    """Let each thief, behind each counter-measure, use the original, its protected version and a control.

    Args:
        thieves: by name.
        counter_measures: by name.
        original: one image [1, 3, height, width] in [0, 1].
        protected: of the same shape.
        levels: of the files, 255 or 65535.
        lpips: measures the perceptual distance, too.
        shown: called with a row for the sheet (see `HEADINGS`) of each finding, of the first seed.
    """
    versions = {CONTROL: control(original, protected, levels=levels), PROTECTED: protected}
    plain: dict[str, float] = {}
    pairs = groupby(
        outcomes(thieves, counter_measures, original, versions), lambda one: (one.thief, one.counter_measure)
    )
    for (role, counter), group in pairs:
        by_version = {one.version: one for one in group}
        one, noise = by_version[PROTECTED], by_version[CONTROL]
        moved = change(one.made, one.original, region=one.region, lpips=lpips)
        damage, idle = _damage(moved), _damage(change(noise.made, noise.original, region=one.region))
        if one.pictures[0] is original:
            plain[role] = damage
        yield Finding(
            role,
            thieves[role].model.name,
            counter,
            damage=damage,
            control=idle,
            ratio=damage / idle if idle > 0 else None,
            psnr=fmean(each.psnr for each in moved),
            lpips=None if lpips is None else fmean(each.lpips for each in moved if each.lpips is not None),
            kept=damage / plain[role] if plain.get(role, 0) > 0 else None,
            **_other_pairs(one, original),
        )
        shown(_row(one, noise, damage))


def _damage(changes: Sequence[Change]) -> float:
    return fmean(each.damage for each in changes)


def _other_pairs(one: Comparison, original: Images) -> dict[str, float]:
    if one.untouched is None:
        return {}
    sources = (one.untouched, original.expand_as(one.made))
    figures = [
        _damage(change(images, source, region=one.region))
        for source in sources
        for images in (one.made, one.original)
    ]
    return dict(zip(("short", "price", "drift", "natural_drift"), figures, strict=True))


def _row(one: Comparison, noise: Comparison, damage: float) -> Row:
    caption = f"{one.thief}, {_behind(one.counter_measure)}: damage {damage:.3f}"
    before, after = one.original[0], one.made[0]
    pictures = (*(images[0] for images in one.pictures), before, after)
    return Row(caption, (*pictures, magnified(before, after), noise.made[0]))


COLUMNS = ("threat", "counter-measure", "damage", "control", "ratio", "kept", "PSNR", "short", "price")


def opening(found: Verification) -> list[str]:
    """Say what is in the file and how much of it can be seen, and begin the table of findings."""
    seen = f"PSNR {found.psnr:.1f} dB, SSIM {found.ssim:.3f}"
    seen += "" if found.lpips is None else f", LPIPS {found.lpips:.3f}"
    left = ", ".join(
        f"{_HANDLED[name]} {share:.0%}" for name, share in found.survival.items() if name != "file"
    )
    first, last = found.seeds[0], found.seeds[-1]
    return [
        f"{found.original} -> {found.protected}",
        f"budget      values differ by at most {found.linf:.3g} of 255, and {found.changed:.0%} of pixels do",
        f"visibility  {seen}",
        f"survival    left of the change after {left}: a warning light, no proof",
        f"shown       {found.shown}",
        *(f"thief       {name}: {text}" for name, text in found.threats.items()),
        f"noise       of seeds {first} to {last}, the same for every picture",
        "",
        "damage   how far the result is from the one that the original gives by the same road: 1 - SSIM",
        "control  the same for random noise of the same budget; ratio: damage in multiples of it",
        "kept     damage in shares of that without a counter-measure",
        "short    how far the result is from what the untouched original gives;",
        "price    how far that of the original is, after the counter-measure: no merit of the protection",
        "",
        _line(COLUMNS),
    ]


def described(thief: Thief) -> str:
    """Say a thief's model and settings in words."""
    fields = {name: value for name, value in vars(thief.threat).items() if name != "mask"}
    return ", ".join(
        [thief.model.name, *(f"{name.replace('_', ' ')} {value!r}" for name, value in fields.items())]
    )


def line(found: Finding) -> str:
    """Put a finding into a line of the table."""
    return _line(
        (
            found.threat,
            found.counter_measure,
            f"{found.damage:.4f}",
            f"{found.control:.4f}",
            "-" if found.ratio is None else f"{found.ratio:.1f}",
            "-" if found.kept is None else f"{found.kept:.0%}",
            f"{found.psnr:.1f} dB",
            *("-" if value is None else f"{value:.4f}" for value in (found.short, found.price)),
        )
    )


def _line(cells: Sequence[str]) -> str:
    first, second, *rest = cells
    return f"{first:<18} {second:<18}" + "".join(f"{cell:>9}" for cell in rest)


def closing(found: Sequence[Finding]) -> list[str]:
    """Say in words what each threat lost, and what that is worth."""
    sentences = [""]
    for threat in dict.fromkeys(one.threat for one in found):
        tried = [one for one in found if one.threat == threat]
        first, least = tried[0], min(tried, key=lambda one: one.damage)
        sentences.append(f"{threat}: {_said(first)}")
        if least is not first:
            sentences.append(f"{threat}: least is left like this: {_said(least)}")
    models = ", ".join(dict.fromkeys(one.model for one in found))
    return [
        *sentences,
        f"Measured on {models} and these settings alone; another model or prompt may give other figures.",
        f"Protection {NO_GUARANTEE}.",
    ]


def _said(one: Finding) -> str:
    times = "" if one.ratio is None else f", {one.ratio:.1f} times what noise does"
    return f"{_behind(one.counter_measure)} the result differs by {one.damage:.4f}{times}"


def _behind(counter_measure: str) -> str:
    return "without a counter-measure" if counter_measure == "none" else f"after {counter_measure}"
