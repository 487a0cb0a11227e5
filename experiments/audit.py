"""Could a set of real and generated pictures be told apart without looking at them?

    python -m experiments audit FOLDER --levels raw codec-equalised --report audit.json

reads the layouts of GenImage, CNNDetection, DiffusionForensics, DistilDIRE and CIFAKE, and plain `real/` and
`generated/` (see `detect.layouts`). It says how well format, size, bytes per pixel, quantisation and metadata
tell the two kinds apart, each by itself and all together, which pictures are there twice, and what the
spectrum alone reaches. `--keep DIR` fits that last row as a calibrated detector, for `detect --detector
DIR`, and prints its figures on the test pictures. The exit code is 0 for a clean set and 1 where something
was found.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from detect.audit import Audit, LevelAudit, audit
from detect.baseline import fit_frequency
from detect.equalise import LEVELS, Equaliser
from detect.judging import Survey
from detect.layouts import read_layout
from detect.leaks import Leak
from imaging.batch.reports import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; a mistake takes one line."""
    parser = argparse.ArgumentParser(prog="python -m experiments audit", description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="of real and generated pictures")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=[*LEVELS[:2]], help="of hygiene")
    parser.add_argument("--side", type=int, default=256, help="of pictures after codec+size-equalised")
    parser.add_argument(
        "--keep", metavar="DIR", help="fit, calibrate and judge the frequency baseline, and keep it there"
    )
    parser.add_argument("--about", default="", help="what the pictures are, in words, for --keep")
    parser.add_argument("--report", metavar="FILE.json", help="write everything that was found")
    given = parser.parse_args(arguments)
    try:
        pictures = read_layout(given.folder)
        surveyed = Survey.of(pictures, progress=progress())
        found = audit(surveyed, levels=given.levels, side=given.side, progress=progress())
        if given.report is not None:
            write_report([found], Path(given.report))
        print("\n".join(lines(found)))
        if given.keep is not None:
            print("\n".join(["", *_keep(surveyed, given.about or given.folder, Path(given.keep))]))
    except (ValueError, OSError) as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    return 1 if found.findings else 0


def _keep(pictures: Survey, about: str, folder: Path) -> list[str]:
    """Fit the frequency baseline to recompressed pictures, keep it, and return its figures for people."""
    detector, card = fit_frequency(pictures, equaliser=Equaliser(), data=about, progress=progress())
    detector.save(folder)
    told = [f"the frequency baseline on codec-equalised pictures, kept in {folder}"]
    for name, value in asdict(card).items():
        words = name.replace("_", " ").replace("auroc", "AUROC").replace("tpr", "TPR").replace("fpr", "FPR")
        shown = " to ".join(f"{each:.3f}" for each in value) if isinstance(value, tuple) else f"{value:.4g}"
        told.append(f"  {words:22} {shown}")
    return told


def lines(found: Audit) -> list[str]:
    """Return an audit for people."""
    told = [f"layout      {found.layout}"]
    for split, (real, generated) in found.counts.items():
        told.append(f"{split:11} {real} real, {generated} generated")
    if found.sources:
        told.append("sources     " + ", ".join(f"{name} {count}" for name, count in found.sources.items()))
    told += [f"unreadable  {reason}" for reason in found.failed.values()]
    if found.unmatched:
        told.append(f"left out    {found.unmatched} pictures that belong to no part of this layout")
    told.append(
        f"duplicates  {found.exact} copies ({found.exact_across_splits} across splits), {found.near} "
        f"near-duplicates ({found.near_across_splits} across splits), {found.across_labels} across labels"
    )
    told.append(f"groups      {found.groups}, of which {found.crossing_groups} lie in several splits")
    told.append(f"judged on   {found.judged[0]} real, {found.judged[1]} generated")
    for level in found.levels:
        told += ["", *_level(level)]
    return [*told, "", *(found.findings or ["nothing was found: the set passes"])]


def _level(level: LevelAudit) -> list[str]:
    told = [f"{level.level:28} AUROC (95 % interval)"]
    if level.dropped_real or level.dropped_generated:
        told.append(
            f"  too small and left out: {level.dropped_real} real, {level.dropped_generated} generated"
        )
    told += [_row(leak, "contaminated" if leak.contaminated else "") for leak in level.leaks]
    told.append(_row(level.spectrum, "the row to beat"))
    told.append(f"  {'shuffled labels':26} {level.control:.3f} (0.5 +- {level.control_error:.3f})")
    return told


def _row(leak: Leak, remark: str) -> str:
    low, high = leak.interval
    return f"  {leak.what:26} {leak.auroc:.3f} ({low:.3f} to {high:.3f}) {remark}".rstrip()


def progress() -> Callable[[float], None]:
    """Tell on a terminal how far the work is."""
    shown = -1

    def tell(share: float) -> None:
        nonlocal shown
        percent = int(100 * share)
        if percent > shown and sys.stderr.isatty():
            shown = percent
            end = "\n" if percent == 100 else ""
            print(f"\r{percent:3d} % of the pictures read", end=end, file=sys.stderr, flush=True)

    return tell
