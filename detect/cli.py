"""The command line, `detect INPUT...`.

Nothing heavy is imported at module level, so that `detect --help` answers at once.
"""

import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from imaging.batch import terminal

if TYPE_CHECKING:
    from detect.record import Record

PROMISE = (
    "An answer is a guess about pictures like those that the detector was fitted to. It proves nothing, and "
    "a heatmap is no evidence of manipulation."
)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> NoReturn:
    """Run the command line with the arguments of the process and exit."""
    app(prog_name="detect")
    raise AssertionError("a command in standalone mode exits by itself")


@app.command(cls=terminal.OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
def detect(
    inputs: terminal.Inputs = None,
    detector: Annotated[
        str, typer.Option(metavar="builtin|DIR", help="The detector: the one that ships, or a folder.")
    ] = "builtin",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object per picture and nothing else.")
    ] = False,
    heatmap: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Draw where pictures look generated."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what speaks for each answer.")] = False,
    report: Annotated[
        str | None,
        typer.Option(metavar="FILE.json", help="Write a record of each input; a second run goes on from it."),
    ] = None,
    recursive: terminal.Recursive = False,
    overwrite: terminal.Overwrite = False,
    device: terminal.DeviceName = "auto",
    quiet: terminal.Quiet = False,
    show_traceback: terminal.ShowTraceback = False,
    version: terminal.Version = False,
) -> int:
    """Say of pictures whether they are real, generated, or whether the detector does not know.

    The inputs are never modified.
    """
    if not inputs:
        return terminal.refuse(
            "detect", "no INPUT given; name pictures, folders or patterns, or see detect --help"
        )

    def work() -> int:
        from pathlib import Path

        from detect.batch import Wishes, read_records, run
        from detect.builtin import load_detector
        from detect.inputs import LABEL, pictures_of
        from detect.record import Record, line
        from diffusion.choice import pick_device
        from imaging.batch.reports import is_report
        from imaging.batch.saving import check_extras
        from imaging.batch.session import follow

        made = pictures_of(inputs, recursive=recursive, heatmaps=heatmap)
        check_extras(made, {"--report": (report, partial(is_report, kind=Record))}, overwrite=overwrite)
        earlier = [] if report is None or overwrite else read_records(Path(report))
        place = pick_device(device)
        judge = load_detector(detector).to(place)
        if heatmap is not None and not judge.has_heatmap:
            raise ValueError(f"the detector {judge.kind} does not look at places: leave --heatmap out")
        failed = traceback.print_exception if show_traceback else None
        closing = [f"detector: {judge.kind}, fitted to {judge.trained_on or 'nothing'}.", PROMISE]
        with terminal.Terminal(len(made.jobs) + len(made.problems), quiet or as_json) as screen:
            records = run(
                made,
                judge,
                wishes=Wishes(heatmap is not None, explain),
                earlier=earlier,
                overwrite=overwrite,
                device=place,
                progress=screen.update,
                failed=failed,
            )
            told = map(_printed, records) if as_json else records
            return follow(
                made,
                told,
                screen,
                label=LABEL,
                closing=closing,
                report=report,
                earlier=earlier,
                tell=line,
            )

    return terminal.attempt("detect", work, show_traceback=show_traceback)


def _printed(record: "Record") -> "Record":
    """Print a record as a line of JSON."""
    import json
    from dataclasses import asdict

    terminal.write(json.dumps(asdict(record), ensure_ascii=False))
    sys.stdout.flush()
    return record
