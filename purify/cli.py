"""The command line, `purify INPUT... --method NAME`.

Nothing heavy is imported at module level, so that `purify --help` answers at once.
"""

import logging
import os
import traceback
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from imaging.batch.terminal import DONE, FAILED, INTERRUPTED, USAGE, OneLineCommand, Terminal, refuse, write
from purify.methods import METHODS

if TYPE_CHECKING:
    from purify.batch import Recipe, Record

Precision = Literal["auto", "float32", "bfloat16"]

PROMISE = (
    "purifying weakens protective and adversarial perturbations and changes the picture; it removes neither "
    "for certain"
)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> NoReturn:
    """Run the command line with the arguments of the process and exit."""
    app(prog_name="purify")
    raise AssertionError("a command in standalone mode exits by itself")


@app.command(cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
def purify(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Pictures, folders or patterns.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="What to do; see --list.")] = "diffpure",
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the model.")] = "auto",
    recursive: Annotated[bool, typer.Option("--recursive", help="Descend into folders.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    report: Annotated[
        str | None, typer.Option(metavar="FILE.json", help="Write a record of each input.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    show_traceback: Annotated[bool, typer.Option("--traceback", help="Show where errors arose.")] = False,
    list_methods: Annotated[bool, typer.Option("--list", help="List the methods and exit.")] = False,
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
            write(f"{name:{width}}  {row.summary}")
        return DONE
    if offline:  # read by the hub's client when it is imported
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    if not show_traceback:  # warnings of libraries say nothing to a person with a picture
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it logs it also raises
    if not (inputs or list_options):
        return refuse("purify", "no INPUT given; name pictures, folders or patterns, or see purify --help")
    try:
        given = {"t": t, "steps": steps, "rounds": rounds, "sampler": sampler}
        settings = _settings(method, given, setting or [])
        if list_options:
            return _print_options(method)
        from diffusion.choice import choose
        from imaging.batch.discover import plan
        from purify.batch import Recipe
        from purify.methods import create, entry

        made = plan(inputs or [], out=out, recursive=recursive, label="purified")
        _check_report(report, [path for job in made.jobs for path in (job.input, job.output)])
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
        with Terminal(len(made.jobs) + len(made.problems), quiet) as screen:
            return _run(made, recipe, purifier, screen, report, overwrite, show_traceback)
    except BrokenPipeError:  # somebody reads no further, as `head` does
        raise
    except Exception as error:
        from imaging.batch.runner import explain

        if show_traceback:
            traceback.print_exc()
        refuse("purify", explain(error))
        return USAGE if isinstance(error, (ValueError, OSError)) else FAILED


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
    return values


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
        write(f"  --set {name}={default}")
    return DONE


def _check_report(report: str | None, taken: Sequence[Path]) -> None:
    from imaging.batch.discover import PlanError
    from imaging.batch.saving import check_writable

    if report is None:
        return
    if os.path.realpath(report) in {os.path.realpath(path) for path in taken}:
        raise PlanError(f"--report {report} would replace an input or a result")
    check_writable(Path(report))


def _run(
    plan: Any,
    recipe: "Recipe",
    purifier: Any,
    screen: Terminal,
    report: str | None,
    overwrite: bool,
    show_traceback: bool,
) -> int:
    from imaging.batch.reports import write_report
    from purify.batch import run

    records: list[Record] = []
    code = DONE
    if plan.left_out:
        screen.say(f"left out {len(plan.left_out)} results of earlier runs (*.purified.*)")
    try:
        for record in run(
            plan,
            recipe,
            purifier,
            overwrite=overwrite,
            progress=screen.update,
            failed=lambda error: traceback.print_exception(error) if show_traceback else None,
        ):
            records.append(record)
            (screen.complain if record.status == "failed" else screen.say)(_line(record))
            screen.finish()
    except KeyboardInterrupt:
        total = len(plan.jobs) + len(plan.problems)
        screen.complain(
            f"interrupted with {len(records)} of {total} done; the same command goes on from here"
        )
        code = INTERRUPTED
    if report is not None:
        write_report(records, Path(report))
    if code == INTERRUPTED:
        return code
    counts = Counter(record.status for record in records)
    screen.say(f"{counts['done']} done, {counts['skipped']} skipped, {counts['failed']} failed")
    prior = f"prior: {recipe.model}. " if recipe.model else ""
    screen.say(f"{prior}{PROMISE[0].upper()}{PROMISE[1:]}.")
    return FAILED if counts["failed"] else DONE


def _line(record: "Record") -> str:
    if record.status == "failed":
        return f"failed   {record.input}: {record.error}"
    if record.status == "skipped":
        return f"skipped  {record.input}: {record.output} is done already, with the same settings"
    facts = [f"change {record.linf:.3g} of 255", f"PSNR {record.psnr:.1f} dB", f"SSIM {record.ssim:.3f}"]
    facts += [f"{record.seconds:.1f} s", *record.notes]
    return f"done     {record.input} -> {record.output}: {'; '.join(facts)}"
