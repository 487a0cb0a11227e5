"""What command lines over many files have in common: flags, complaints of one line, and progress with the
time left.

The one module beside the command lines themselves that knows a terminal.
"""

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperCommand

from imaging.batch.reports import duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from imaging.batch.discover import Job

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all done; some failed; the command is wrong; Ctrl-C."""


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        write(f"vernis {version('vernis')}")
        raise typer.Exit


Inputs = Annotated[list[str] | None, typer.Argument(metavar="INPUT", help="Pictures, folders or patterns.")]
MethodName = Annotated[str, typer.Option(metavar="NAME", help="What to do; see --list.")]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Precision = Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Arithmetic of the model.")]
Recursive = Annotated[bool, typer.Option("--recursive", help="Descend into folders.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")]
ReportFile = Annotated[str | None, typer.Option(metavar="FILE.json", help="Write a record of each input.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
ShowTraceback = Annotated[bool, typer.Option("--traceback", help="Show where errors arose.")]
Version = Annotated[
    bool,
    typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version it is and exit."),
]
ListMethods = Annotated[bool, typer.Option("--list", help="List the methods and exit.")]

_SECONDS_BETWEEN_LINES = 30.0
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters but tabs and ends of lines, and those that change the direction of writing."""

# What typer raises for a wrong option has no public name of its own.
_WrongOption = typer.BadParameter.__mro__[1]


class OneLineCommand(TyperCommand):
    """A command whose complaints take one line, as everything else here does."""

    def main(
        self, args: Sequence[str] | None = None, *rest: Any, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        try:
            given = named(sys.argv[1:] if args is None else args)
            code = super().main(given, *rest, standalone_mode=False, **extra)
        except _WrongOption as error:
            code = refuse(self.name or "", cast(typer.BadParameter, error).format_message())
        except typer.Abort:
            code = INTERRUPTED
        if standalone_mode:
            sys.exit(code or 0)
        return code


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before the first `--`, and the files behind it."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:place]), list(arguments[place + 1 :])


def named(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which no file is taken for an option, though its name begins with a dash.

    Behind `--` all are files. Before it, the shell may have put some in the place of a pattern.

    Raises what typer raises for a wrong option, for what is neither a file nor one.
    """
    before, files = parted(arguments)
    shown = []
    for previous, each in zip(["", *before], before, strict=False):
        if each.startswith("-") and os.path.lexists(each):
            each = _in_this_folder(each)
        elif _is_nothing(each) and not previous.startswith("--"):
            raise _WrongOption(
                f"no such file: {each}; and options have two dashes (files behind -- may begin with any)"
            )
        shown.append(each)
    return [*shown, *map(_in_this_folder, files)]


def _is_nothing(argument: str) -> bool:
    if not argument.startswith("-") or argument.startswith("--") or argument in ("-", "-h"):
        return False
    try:
        float(argument)
    except ValueError:
        return True
    return False


def _in_this_folder(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name


def attempt(
    command: str, work: Callable[[], int], *, offline: bool = False, show_traceback: bool = False
) -> int:
    """Do the work of a command and return its exit code; an error becomes one line and its code."""
    if offline:  # read by the hub's client when it is imported
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    if not show_traceback:  # warnings of libraries say nothing to a person with a picture
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it logs it also raises
    try:
        return work()
    except BrokenPipeError:  # somebody reads no further, as `head` does
        raise
    except Exception as error:
        from imaging.batch.runner import explain

        if show_traceback:
            traceback.print_exc()
        refuse(command, explain(error))
        return USAGE if isinstance(error, (ValueError, OSError)) else FAILED


def refuse(command: str, message: str) -> int:
    """Say in one line what is wrong with a command, and return the exit code for that."""
    write(f"{command}: {' '.join(message.split())}", error=True)
    return USAGE


def escaped(text: str) -> str:
    """Return a text without what steers a terminal, or turns the order of its letters round."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def write(text: str, *, error: bool = False) -> None:
    """Print a text, whatever it is of and whatever the terminal's encoding."""
    text = escaped(text)
    # A file's name may hold what the terminal's encoding lacks, or bytes that are no text at all.
    encoding = getattr(sys.stderr if error else sys.stdout, "encoding", None) or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=error)


def _in_one_line(text: str) -> str:
    return text.replace("\n", "\\n")


class Terminal:
    """A progress bar with the time left on a terminal, and elsewhere a line now and then."""

    def __init__(self, total: int, quiet: bool) -> None:
        self._total, self._quiet = total, quiet
        self._finished, self._started = 0, time.monotonic()
        self._last_line = self._started
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Terminal":
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
            self._bar = Progress(
                *columns,
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # lines that go to a file must arrive there
            )
            self._task = self._bar.add_task("loading the model", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        if not self._quiet:
            write(_in_one_line(text))

    def complain(self, text: str) -> None:
        write(_in_one_line(text), error=True)

    def update(self, job: "Job", share: float) -> None:
        done = self._finished + share
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, description=escaped(_in_one_line(job.input.name)))
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self.say(f"         {job.input}: {share:.0%}{self._time_left(done)}")
            self._last_line = time.monotonic()

    def finish(self) -> None:
        self._finished += 1
        self._last_line = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._finished)
        elif self._finished < self._total:
            self.say(f"         {self._finished} of {self._total}{self._time_left(self._finished)}")

    def _time_left(self, done: float) -> str:
        seconds = (time.monotonic() - self._started) * (self._total - done) / max(done, 1e-6)
        return f", about {duration(seconds)} left"
