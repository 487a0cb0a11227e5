"""The command line, `purify INPUT... --method NAME`.

Nothing heavy is imported at module level, so that `purify --help` answers at once.
"""

import math
import traceback
from collections.abc import Sequence
from functools import cache, partial
from typing import Annotated, Any, NoReturn

import typer

from imaging.batch import terminal
from purify.methods import METHODS

PROMISE = (
    "Purifying weakens protective and adversarial perturbations and changes the picture; it removes neither "
    "for certain."
)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> NoReturn:
    """Run the command line with the arguments of the process and exit."""
    app(prog_name="purify")
    raise AssertionError("a command in standalone mode exits by itself")


@app.command(cls=terminal.OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
def purify(
    inputs: terminal.Inputs = None,
    method: terminal.MethodName = "diffpure",
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE|DIR", help="Where to. Default: NAME.purified.png beside the input."),
    ] = None,
    t: Annotated[int | None, typer.Option("--t", help="Steps into the noise, of 1000.")] = None,
    steps: Annotated[int | None, typer.Option(help="Network calls on the way back.")] = None,
    rounds: Annotated[int | None, typer.Option(help="How often.")] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help="ddpm, ddim, dpm-solver, sde or ode.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method; see --options."),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="The prior: auto, builtin, sd15, cifar10, a folder.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Same seed, same result.")] = 0,
    device: terminal.DeviceName = "auto",
    precision: terminal.Precision = "auto",
    recursive: terminal.Recursive = False,
    overwrite: terminal.Overwrite = False,
    report: terminal.ReportFile = None,
    offline: terminal.Offline = False,
    quiet: terminal.Quiet = False,
    show_traceback: terminal.ShowTraceback = False,
    version: terminal.Version = False,
    list_methods: terminal.ListMethods = False,
    list_options: Annotated[
        bool, typer.Option("--options", help="List the method's settings and exit.")
    ] = False,
) -> int:
    """Take small perturbations out of pictures, with a diffusion model or without.

    The inputs are never modified.
    """
    if list_methods:
        width = max(map(len, METHODS))
        for name, row in METHODS.items():
            terminal.write(f"{name:{width}}  {row.summary}")
        return terminal.DONE
    if not (inputs or list_options):
        return terminal.refuse(
            "purify", "no INPUT given; name pictures, folders or patterns, or see purify --help"
        )

    def work() -> int:
        given = {"t": t, "steps": steps, "rounds": rounds, "sampler": sampler}
        settings = _settings(method, given, setting or [])
        if list_options:
            return _print_options(method)
        from diffusion.choice import choose
        from imaging.batch.discover import plan
        from imaging.batch.reports import is_report
        from imaging.batch.saving import check_extras
        from imaging.batch.session import follow
        from purify.batch import Recipe, Record, run
        from purify.methods import create, entry

        made = plan(inputs or [], out=out, recursive=recursive, label="purified")
        check_extras(made, {"--report": (report, partial(is_report, kind=Record))}, overwrite=overwrite)
        choice = choose(model) if entry(method).needs_model else None
        recipe = Recipe(
            method.lower(),
            settings,
            choice.label if choice else None,
            seed,
            choice.identity if choice else None,
            precision,
        )

        @cache
        def purifier():
            prior = choice.load(device=device, precision=precision, offline=offline) if choice else None
            return create(method, prior, **settings)

        if choice is None:
            purifier()  # its settings are wrong for every file or for none
        failed = traceback.print_exception if show_traceback else None
        closing = f"prior: {choice.label}. {PROMISE}" if choice else PROMISE
        with terminal.Terminal(len(made.jobs) + len(made.problems), quiet) as screen:
            records = run(made, recipe, purifier, overwrite=overwrite, progress=screen.update, failed=failed)
            return follow(made, records, screen, label="purified", closing=[closing], report=report)

    return terminal.attempt("purify", work, offline=offline, show_traceback=show_traceback)


def _settings(method: str, given: dict[str, Any], more: Sequence[str]) -> dict[str, Any]:
    """The method's settings from flags and `--set`. Raises ValueError for mistakes."""
    from purify.methods import options

    known = options(method)
    values = {name: value for name, value in given.items() if value is not None}
    for text in more:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE; got {text!r}")
        values[name.replace("-", "_")] = _parsed(value)
    for name in values:
        if name not in known:
            available = ", ".join(known) or "none"
            raise ValueError(f"{method} has no setting {name!r}; available: {available}")
        _check(name, values[name], known[name])
    return values


def _check(name: str, value: Any, default: Any) -> None:
    """Raise ValueError for a value that is not of the kind of the default."""
    if not isinstance(default, int | float) or isinstance(default, bool):
        return
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is a number; got {value!r}")
    if isinstance(default, int) and not float(value).is_integer():
        raise ValueError(f"{name} is a whole number; got {value!r}")


def _parsed(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _print_options(method: str) -> int:
    from purify.methods import options

    for name, default in options(method).items():
        terminal.write(f"  --set {name}={default}")
    return terminal.DONE
