"""The command line, `protect INPUT... --method NAME`: it reads and talks, `command.session` does the work.

Nothing heavy is imported at module level, so that `protect --help` answers at once.
"""

import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from imaging.batch import terminal
from protect.methods import METHODS

if TYPE_CHECKING:
    from protect.method import ProtectionMethod

STRENGTHS = {"light": 6, "standard": 8, "strong": 12, "max": 16}
"""What `--strength` stands for, in 1/255."""

EngineName = Literal["serial", "local", "ray"]
Strength = Literal["light", "standard", "strong", "max"]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> NoReturn:
    """Run the command line with the arguments of the process and exit."""
    app(prog_name="protect")
    raise AssertionError("a command in standalone mode exits by itself")


class _ProtectOrVerify(terminal.OneLineCommand):
    """The command; with `--verify` among the arguments another one, which has a page of help of its own."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        if "--verify" not in terminal.parted(given)[0]:
            return super().main(given, *rest, **extra)
        from protect.verify.cli import app as verify

        given.remove("--verify")
        extra["prog_name"] = f"{extra.get('prog_name') or 'protect'} --verify"
        return typer.main.get_command(verify).main(given, *rest, **extra)


@app.command(
    cls=_ProtectOrVerify,
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    epilog="A method's own options follow the same way, such as --prompt 'an oil painting' --step-size 0.5;"
    " --method NAME --options lists them. What a protection is worth: protect --verify ORIGINAL PROTECTED,"
    " see protect --verify --help.",
)
def protect(
    context: typer.Context,
    inputs: terminal.Inputs = None,
    method: terminal.MethodName = "mist",
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE|DIR", help="Where to. Default: NAME.protected.png beside the input."),
    ] = None,
    eps: Annotated[
        float | None, typer.Option(help="Largest change of any value, of 255; 8 for most methods.")
    ] = None,
    strength: Annotated[Strength | None, typer.Option(help="--eps in words: 6, 8, 12 or 16 of 255.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps; 100 for most methods.")] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH[,…]",
            help="What to protect against: auto, builtin, sd15, tiny, a folder; several together: sd15,sdxl.",
        ),
    ] = "auto",
    mask: Annotated[
        str | None, typer.Option(metavar="FILE", help="Picture of the same size, white where to protect.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Same seed, same result.")] = 0,
    device: terminal.DeviceName = "auto",
    precision: terminal.Precision = "auto",
    recursive: terminal.Recursive = False,
    overwrite: terminal.Overwrite = False,
    report: terminal.ReportFile = None,
    sheet: Annotated[
        str | None,
        typer.Option(metavar="FILE.png", help="Draw original, protected, change and edits side by side."),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(help="Pictures in turn, on several processes, or on a cluster."),
    ] = "serial",
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of engines local and ray; one for each device.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="Of a Ray cluster: auto or HOST:PORT. Default: start one."),
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(metavar="FILE.parquet", help="Write the records as a table, too.")
    ] = None,
    offline: terminal.Offline = False,
    quiet: terminal.Quiet = False,
    show_traceback: terminal.ShowTraceback = False,
    version: terminal.Version = False,
    list_methods: terminal.ListMethods = False,
    list_options: Annotated[
        bool, typer.Option("--options", help="List the method's options and exit.")
    ] = False,
) -> int:
    """Change pictures slightly so that diffusion models cannot use them well.

    It raises the cost of misuse and guarantees nothing. The inputs are never modified.
    """
    if list_methods:
        return _print_methods()
    if not (inputs or list_options):
        return terminal.refuse(
            "protect", "no INPUT given; name pictures, folders or patterns, or see protect --help"
        )

    def work() -> int:
        flags = [flag for parameter in context.command.params for flag in parameter.opts]
        chosen, paths = _method(method, inputs or [], flags, eps=eps, strength=strength, steps=steps)
        if list_options:
            return _print_options(method, chosen)
        from protect.command import engines, session
        from protect.command.engines.worker import Order, here
        from protect.ensemble import repeated_encoders
        from protect.surrogate import choose_for, load_for

        plan = session.prepare(
            paths,
            out=out,
            recursive=recursive,
            report=report,
            sheet=sheet,
            manifest=manifest,
            mask=mask,
            overwrite=overwrite,
            urls=engine == "ray",
        )
        surrogates = choose_for(chosen, model, offline=offline)
        recipe = session.recipe_for(method, chosen, surrogates, mask=mask, seed=seed, precision=precision)
        order = Order(recipe, surrogates.members, device, offline, overwrite, here())
        chosen_engine = engines.choose(engine, order, workers=workers, address=address)

        @cache
        def surrogate():
            # A sheet shows the edits of the first alone.
            models = [
                load_for(
                    chosen,
                    choice,
                    device=device,
                    precision=precision,
                    offline=offline,
                    whole=bool(sheet) and not place,
                )
                for place, choice in enumerate(surrogates.members)
            ]
            for note in repeated_encoders(chosen.surrogates(models)):
                screen.say(f"note: {note}")
            return models

        with terminal.Terminal(len(plan.jobs) + len(plan.problems), quiet) as screen:
            return session.work(
                plan,
                recipe,
                surrogate,
                screen,
                report=report,
                sheet=sheet,
                overwrite=overwrite,
                show_traceback=show_traceback,
                engine=chosen_engine,
                manifest=manifest,
            )

    return terminal.attempt("protect", work, offline=offline, show_traceback=show_traceback)


def _method(
    name: str,
    arguments: list[str],
    flags: list[str],
    *,
    eps: float | None,
    strength: Strength | None,
    steps: int | None,
) -> tuple["ProtectionMethod", list[str]]:
    """The method with its settings, and the arguments that are inputs. Raises ValueError for mistakes."""
    from protect.command.options import options, split_arguments
    from protect.methods import create

    if eps is not None and strength is not None:
        raise ValueError("--eps and --strength say the same thing; give one of them")
    if strength is not None:
        eps = STRENGTHS[strength]
    if eps is not None and not 1 <= eps <= 64:
        raise ValueError(f"--eps is a number of levels from 1 to 64 (of 255); got {eps:g}")
    given = {"eps": None if eps is None else eps / 255, "steps": steps}
    own = {flag: option for flag, option in options(create(name)).items() if option.name not in given}
    paths, values = split_arguments(arguments, own, also=[flag for flag in flags if flag.startswith("--")])
    values |= {field: value for field, value in given.items() if value is not None}
    return create(name, **values), paths


def _print_methods() -> int:
    width = max(map(len, METHODS))
    for name, entry in METHODS.items():
        typer.echo(f"{name:{width}}  {entry.summary}\n{'':{width}}  against {entry.guards}")
    return 0


def _print_options(name: str, method: "ProtectionMethod") -> int:
    from protect.command.options import options

    typer.echo(f"{name}: {METHODS[name.lower()].summary}")
    for flag, option in options(method).items():
        unit = " of 255" if option.unit != 1 else ""
        typer.echo(f"  {flag}  {option.expectation}; default {option.show(option.default)}{unit}")
        typer.echo(f"      {' '.join(option.doc.split())}")
    return 0
