"""Method x metric, from the reports of `python -m experiments robustness`.

    python -m experiments.tables runs/trades/report.json runs/ard-1/report.json runs/ard-2/report.json

prints a Markdown table with one row for each folder's name, in the order given; folders that differ only in a
number at the end (`ard-1`, `ard-2`) are seeds of one row, of which mean and standard deviation are printed.
`--csv FILE` writes the figures of every report. Figures are per cent of test images. `--less A B` adds by how
much A is better than B on the same images, from the records beside the reports; the intervals, of 95 %, are
over images, each averaged over its seeds, and say nothing of other seeds.
"""

import argparse
import csv
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from attacks.evaluate import NULL, read_records

Figures = Mapping[str, float]
Shares = dict[tuple[int, int], float]
"""How often images are right, by their number and label."""

HEADS = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd-sat": "PGD-SAT",
    "pgd-trades": "PGD-TRADES",
    "cw": "CW",
    "apgd": "APGD",
    "autoattack": "AA",
    "w pgd-sat": "W PGD-SAT",
    "nrr": "NRR",
}
"""The columns, in their order, and what stands over them."""


def read(paths: Sequence[Path]) -> list[tuple[str, Figures]]:
    """Return the name of each report's folder and its figures.

    Raises ValueError for a file that is no report, and if reports are not of one radius.
    """
    found, radii = [], set()
    for path in paths:
        try:
            report = json.loads(path.read_text())
            found.append((path.resolve().parent.name, report["figures"]))
            radii.add(report["settings"]["eps"])
        except (KeyError, TypeError, json.JSONDecodeError):
            raise ValueError(f"{path} is no report of `python -m experiments robustness`") from None
    if len(radii) > 1:
        raise ValueError(f"reports of several radii make no table: eps {', '.join(sorted(radii))}")
    return found


def method_of(name: str) -> str:
    """Return a folder's name without the number of its seed."""
    return re.sub(r"[-_]\d+$", "", name)


def table(reports: Sequence[tuple[str, Figures]]) -> str:
    """Return the table as Markdown; the best of each column is bold, if there are two rows."""
    groups: dict[str, list[Figures]] = {}
    for name, figures in reports:
        groups.setdefault(method_of(name), []).append(figures)
    columns = [each for each in HEADS if any(each in figures for _, figures in reports)]
    means = {
        (name, each): statistics.fmean(own)
        for name, group in groups.items()
        for each in columns
        if (own := [figures[each] for figures in group if each in figures])
    }
    lines = ["| method | seeds | " + " | ".join(HEADS[each] for each in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for name, group in groups.items():
        cells = [_cell(name, each, group, means, len(groups) > 1) for each in columns]
        lines.append(f"| {name} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(
    name: str, column: str, group: Sequence[Figures], means: Mapping[tuple[str, str], float], several: bool
) -> str:
    if (name, column) not in means:
        return ""
    text, own = f"{means[name, column]:.2f}", [figures[column] for figures in group if column in figures]
    best = max(value for (_, other), value in means.items() if other == column)
    if several and means[name, column] == best:
        text = f"**{text}**"
    return f"{text} ± {statistics.stdev(own):.2f}" if len(own) > 1 else text


def differences(reports: Sequence[Path], pairs: Sequence[tuple[str, str]]) -> str:
    """Return a Markdown table of how much better the first method of each pair is, on the same images.

    Raises ValueError for a method without a report, and methods that were not judged on the same images.
    """
    folders: dict[str, list[Path]] = {}
    for path in reports:
        folders.setdefault(method_of(path.resolve().parent.name), []).append(path.parent)
    rows: list[tuple[str, dict[str, str]]] = []
    for pair in pairs:
        for name in pair:
            if name not in folders:
                raise ValueError(f"there is no report of {name!r}; there are {', '.join(folders)}")
        one, other = (_shares([_right(folder) for folder in folders[name]]) for name in pair)
        found = {each: _less(pair, one[each], other[each]) for each in HEADS if each in one and each in other}
        if not found:
            raise ValueError(f"{' and '.join(pair)} have no records of the same attack beside their reports")
        rows.append((f"{pair[0]} less {pair[1]}", found))
    columns = [each for each in HEADS if any(each in found for _, found in rows)]
    lines = ["| difference | " + " | ".join(HEADS[each] for each in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    lines += [f"| {name} | {' | '.join(found.get(each, '') for each in columns)} |" for name, found in rows]
    return "\n".join(lines) + "\n"


def _right(folder: Path) -> dict[str, Shares]:
    """How often images are right under each attack, of the run on most images."""
    runs: dict[tuple[str, str], Shares] = {}
    for record in read_records(folder / "records.jsonl"):
        name = "clean" if record.attack == NULL else record.attack
        runs.setdefault((name, record.settings), {})[record.index, record.label] = record.correct
    largest: dict[str, Shares] = {}
    for (name, _), run in runs.items():
        largest[name] = max(largest.get(name, {}), run, key=len)
    clean, robust = largest.get("clean", {}), largest.get("pgd-sat", {})
    if robust and set(clean) == set(robust):
        largest["w pgd-sat"] = {image: (clean[image] + robust[image]) / 2 for image in clean}
    return largest


def _shares(seeds: Sequence[dict[str, Shares]]) -> dict[str, Shares]:
    """The mean over seeds of what all of them were judged by."""
    names = set.intersection(*(set(seed) for seed in seeds))
    return {
        name: {
            image: statistics.fmean(seed[name][image] for seed in seeds)
            for image in set.intersection(*(set(seed[name]) for seed in seeds))
        }
        for name in names
    }


def _less(pair: tuple[str, str], one: Shares, other: Shares) -> str:
    if set(one) != set(other) or len(one) < 2:
        raise ValueError(f"{' and '.join(pair)} were not judged on the same images")
    apart = [100 * (one[image] - other[image]) for image in one]
    half = 1.96 * statistics.stdev(apart) / len(apart) ** 0.5
    return f"{statistics.fmean(apart):+.1f} ± {half:.1f}"


def write_csv(reports: Sequence[tuple[str, Figures]], path: Path) -> None:
    """Write one line for each report, empty where it has no figure."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["folder", *HEADS])
        writer.writerows([name, *(figures.get(each, "") for each in HEADS)] for name, figures in reports)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m experiments.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--less", nargs=2, action="append", default=[], metavar=("A", "B"))
    given = parser.parse_args(arguments)
    try:
        reports = read(given.reports)
        if given.csv is not None:
            write_csv(reports, given.csv)
        apart = differences(given.reports, [(a, b) for a, b in given.less])
    except (ValueError, OSError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 1
    print(table(reports), end="")
    if given.less:
        print(f"\n{apart}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
