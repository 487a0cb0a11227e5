"""What the rows of the protection benchmark say: means with intervals over pictures, tables, a plot."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from experiments.gallery import Visible
from experiments.protection import CONTROL, bootstrap

NONE = "none"
WORST = "worst of all"
"""The counter-measure that leaves the least of a picture's protection, chosen for each picture."""


@dataclass(frozen=True)
class Row:
    """One pair of results; figures as in `protect.verify.verification.PAIRS`."""

    picture: str
    method: str
    threat: str
    counter_measure: str
    seed: int
    damage: float
    psnr: float
    lpips: float | None
    short: float | None
    price: float | None
    settings: str
    """Digest of what the figures depend on."""


@dataclass(frozen=True)
class Summary:
    """One cell of the table: means over pictures and seeds."""

    threat: str
    method: str
    counter_measure: str
    pictures: int
    seeds: int
    damage: float
    low: float
    """Of the 95 % interval of `damage` over pictures, bootstrapped; as `high`."""
    high: float
    control: float
    """The damage that random noise of the same budget does."""
    kept: float | None
    """Damage as a share of that without a counter-measure."""
    psnr: float
    lpips: float | None
    short: float | None
    price: float | None

    @property
    def ratio(self) -> float:
        """Damage in multiples of the control's."""
        return self.damage / self.control if self.control > 0 else float("inf")


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Return one summary for each threat, method and counter-measure, and the worst of each pair."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.threat, row.method, row.counter_measure), []).append(row)
    found: list[Summary] = []
    for threat in dict.fromkeys(row.threat for row in rows):
        counters = [key[2] for key in groups if key[:2] == (threat, CONTROL)]
        for method in dict.fromkeys(row.method for row in rows if row.threat == threat):
            tried = {
                each: groups[threat, method, each] for each in counters if (threat, method, each) in groups
            }
            for counter, group in tried.items():
                found.append(_summary(group, groups[threat, CONTROL, counter], tried.get(NONE), counter))
            if len(tried) > 1:
                idle = {each: groups[threat, CONTROL, each] for each in tried}
                found.append(_summary(worst(tried), worst(idle), tried.get(NONE), WORST))
    return found


def worst(tried: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return, for each picture, the rows behind the counter-measure that leaves the least damage.

    It is chosen on every second seed and scored on the others, as luck would otherwise count as success; with
    a single seed there are no others.
    """
    seeds = sorted({row.seed for group in tried.values() for row in group})
    chosen_on, scored_on = set(seeds[1::2] or seeds), set(seeds[::2])
    kept: list[Row] = []
    for picture in dict.fromkeys(row.picture for group in tried.values() for row in group):
        own = {name: [row for row in group if row.picture == picture] for name, group in tried.items()}
        own = {name: group for name, group in own.items() if group}
        least = min(own, key=lambda name: _mean([row.damage for row in own[name] if row.seed in chosen_on]))
        kept += [row for row in own[least] if row.seed in scored_on]
    return kept


def per_picture(rows: Sequence[Row], figure: Callable[[Row], float]) -> Tensor:
    """Return the mean of a figure for each picture."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row.picture, []).append(figure(row))
    return torch.tensor([_mean(group) for group in groups.values()])


def _summary(rows: Sequence[Row], idle: Sequence[Row], plain: Sequence[Row] | None, counter: str) -> Summary:
    damages, first = per_picture(rows, lambda row: row.damage), rows[0]
    low, high = bootstrap(damages)
    damage = float(damages.mean())
    without = None if plain is None else float(per_picture(plain, lambda row: row.damage).mean())
    return Summary(
        first.threat,
        first.method,
        counter,
        len(damages),
        len({row.seed for row in rows}),
        damage,
        low,
        high,
        float(per_picture(idle, lambda row: row.damage).mean()),
        damage / without if without else None,
        _mean([row.psnr for row in rows]),
        _known(rows, "lpips"),
        _known(rows, "short"),
        _known(rows, "price"),
    )


def _known(rows: Sequence[Row], figure: str) -> float | None:
    values = [getattr(row, figure) for row in rows]
    return None if None in values else _mean(values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(found: Sequence[Summary], visible: Sequence[Visible]) -> str:
    """Return Markdown: visibility by method, then for each threat the damage that is left to each."""
    threats = dict.fromkeys(one.threat for one in found)
    parts = [_threat_table(threat, [one for one in found if one.threat == threat]) for threat in threats]
    return "\n".join([_visibility(visible), *parts])


def _visibility(visible: Sequence[Visible]) -> str:
    heads = ("method", "largest change", "PSNR", "SSIM", "LPIPS", "seconds")
    lines = ["How much is seen of the protection, means over pictures:", "", *_head(heads)]
    for method in dict.fromkeys(one.method for one in visible):
        own = [one for one in visible if one.method == method]
        psnr, ssim, seconds = (
            _mean([getattr(one, name) for one in own]) for name in ("psnr", "ssim", "seconds")
        )
        lpips = _known_of([one.lpips for one in own])
        cells = [
            f"{max(one.linf for one in own):.0f} of 255",
            f"{psnr:.1f} dB",
            f"{ssim:.3f}",
            _shown(lpips, ".3f"),
        ]
        lines.append(f"| {method} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join([*lines, ""])


def _known_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _threat_table(threat: str, found: Sequence[Summary]) -> str:
    cells = {(one.method, one.counter_measure): one for one in found}
    methods = list(dict.fromkeys(one.method for one in found))
    counters = [name for name in dict.fromkeys(one.counter_measure for one in found) if name != WORST]
    last = [WORST] if len(counters) > 1 else []
    heads = ["method"]
    for name in [*counters[:1], *last]:
        heads += [name, "95 %", "x control"]
    heads[4:4] = ["PSNR", "LPIPS"]
    heads[6:6] = [f"{name}, kept" for name in counters[1:]]
    some = found[0]
    lines = [
        f"**{threat}**: damage, 1 - SSIM of the results from the protected and the original picture behind"
        f" the same counter-measure; {some.pictures} pictures, {some.seeds} seeds.",
        "",
        *_head(heads),
    ]
    for method in methods:
        row = [method]
        first = cells.get((method, counters[0]))
        row += _with_interval(first)
        row += ["", ""] if first is None else [f"{first.psnr:.1f} dB", _shown(first.lpips, ".3f")]
        for name in counters[1:]:
            one = cells.get((method, name))
            row.append("" if one is None else f"{one.damage:.4f}, {_shown(one.kept, '.0%')}")
        for name in last:
            row += _with_interval(cells.get((method, name)))
        lines.append(f"| {' | '.join(row)} |")
    prices = [cells[CONTROL, name] for name in counters[1:] if (CONTROL, name) in cells]
    told = ", ".join(f"{one.counter_measure} {one.price:.4f}" for one in prices if one.price is not None)
    if told:
        lines += ["", f"What the counter-measures do to the result from the original itself: {told}."]
    return "\n".join([*lines, ""])


def _head(heads: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]


def _with_interval(one: Summary | None) -> list[str]:
    if one is None:
        return ["", "", ""]
    between = f"{one.low:.4f} to {one.high:.4f}" if one.pictures > 1 else ""
    return [f"{one.damage:.4f}", between, f"{one.ratio:.2f}"]


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def write_summary(found: Sequence[Summary], path: Path) -> None:
    """Write every cell as a row of CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*(each.name for each in fields(Summary)), "ratio"])
        writer.writeheader()
        writer.writerows({**asdict(one), "ratio": one.ratio} for one in found)


def plot(found: Sequence[Summary], path: Path) -> None:
    """Draw, for each threat, the damage of each method over the counter-measures, control included."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    threats = list(dict.fromkeys(one.threat for one in found))
    counters = list(dict.fromkeys(one.counter_measure for one in found))
    size = (2.5 + 0.55 * len(counters), 3.2 * len(threats))
    figure, axes = pyplot.subplots(len(threats), figsize=size, layout="constrained", squeeze=False)
    for place, threat in zip(axes[:, 0], threats, strict=True):
        for method in dict.fromkeys(one.method for one in found if one.threat == threat):
            own = [one for one in found if (one.threat, one.method) == (threat, method)]
            at = [counters.index(one.counter_measure) for one in own]
            errors = [[one.damage - one.low for one in own], [one.high - one.damage for one in own]]
            style = {"color": "black", "linestyle": "--"} if method == CONTROL else {}
            heights = [one.damage for one in own]
            place.errorbar(at, heights, yerr=errors, marker="o", ms=3, lw=1, capsize=2, label=method, **style)
        place.set_xticks(range(len(counters)), counters, rotation=30, ha="right")
        place.set_title(threat)
        place.set_ylabel("1 - SSIM")
        place.set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=6, ncols=2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
