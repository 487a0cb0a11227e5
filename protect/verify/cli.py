"""The command line, `protect --verify ORIGINAL PROTECTED`: it composes thieves with the purifiers they use.

The one module of `protect` that knows `purify`. Nothing heavy is imported at module level.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imaging.batch import terminal
from imaging.formats import PICTURE_SUFFIXES
from protect.threats import THREATS

if TYPE_CHECKING:
    from diffusion.model import DiffusionModel

PURIFIERS = ("none", "jpeg75", "half", "jpeg75+half", "blur", "adverse-cleaner")
"""Without a diffusion model of their own, and so quick."""
_LISTS = ("--threats", "--purifiers")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class _WithLists(terminal.OneLineCommand):
    """A command whose `--threats one two` is read as `--threats one --threats two`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _repeated(args))


def _keep_quiet(text: str) -> None:
    """Say nothing."""


def _repeated(arguments: Sequence[str]) -> list[str]:
    """Put the flag before each further word of a list, which ends at the next flag or picture."""
    found: list[str] = []
    flag, fresh = "", True
    for argument in arguments:
        if argument.startswith("-"):
            flag, fresh = (argument if argument in _LISTS else ""), True
        elif flag and Path(argument).suffix.lower() in PICTURE_SUFFIXES:
            flag = ""
        elif flag:
            found += [] if fresh else [flag]
            fresh = False
        found.append(argument)
    return found


@app.command("protect --verify", cls=_WithLists, context_settings={"help_option_names": ["-h", "--help"]})
def verify(
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="ORIGINAL PROTECTED", help="The two files to compare.")
    ] = None,
    threats: Annotated[
        list[str], typer.Option(metavar="NAME…", help=f"What a thief does: {', '.join(THREATS)}.")
    ] = ["img2img"],  # noqa: B006 - read by typer alone
    purifiers: Annotated[
        list[str],
        typer.Option(metavar="NAME…", help="What he tries first: jpeg75, half, jpeg75+half, diffpure50 …"),
    ] = [*PURIFIERS],  # noqa: B006
    model: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="His model: auto, builtin, sd15, a folder.")
    ] = "auto",
    prior: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="The model of purifiers that have one.")
    ] = "auto",
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="For inpainting: white on what is kept, black on what is repainted."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What he asks the model for.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the sampler.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Of the prompt; 1 is none.")] = None,
    learning_steps: Annotated[
        int | None, typer.Option(min=1, help="Updates, of threats that train a model on the picture.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="How many draws of noise.")] = 4,
    lpips: Annotated[
        str | None, typer.Option(metavar="FILE", help="Weights of LPIPS (AlexNet), to measure that, too.")
    ] = None,
    sheet: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Draw the pictures and what becomes of them.")
    ] = None,
    report: Annotated[
        str | None, typer.Option(metavar="FILE.json", help="Write everything that was measured.")
    ] = None,
    overwrite: terminal.Overwrite = False,
    device: terminal.DeviceName = "auto",
    precision: terminal.Precision = "auto",
    offline: terminal.Offline = False,
    quiet: terminal.Quiet = False,
    show_traceback: terminal.ShowTraceback = False,
) -> int:
    """Say what is left of a protection when a thief uses the picture, and what noise would do as well.

    The files are never modified.
    """

    def work() -> int:
        from diffusion.choice import Choice, choose
        from protect.threats import find
        from protect.verify import session
        from protect.verify.thief import CounterMeasure
        from purify.chain import Chain, parse

        if guidance is not None and not math.isfinite(guidance):
            raise ValueError(f"--guidance is a number; got {guidance}")
        given = {"prompt": prompt, "steps": steps, "guidance": guidance, "learning_steps": learning_steps}
        roles, roads = ([*dict.fromkeys(map(str.lower, names))] for names in (threats, purifiers))
        for name in roles:
            find(name)
        for words in roads:
            parse(words)
        case = session.prepare(
            pictures or [], mask=mask, lpips=lpips, extras=(report, sheet), overwrite=overwrite
        )

        @cache
        def loaded(choice: Choice) -> "DiffusionModel":
            return choice.load(device=device, precision=precision, offline=offline)

        def load(name: str, inpainting: bool = False) -> "DiffusionModel":
            return loaded(choose(name, inpainting=inpainting))

        thieves = session.thieves(
            case, roles, partial(load, model), settings=given, seeds=seeds, precision=precision
        )
        chains = {words: Chain(words, partial(load, prior)) for words in roads}
        counter_measures = {words: CounterMeasure(chain, chain.aligned) for words, chain in chains.items()}
        say = _keep_quiet if quiet else terminal.write
        session.judge(case, thieves, counter_measures, say, report=report, sheet=sheet)
        return terminal.DONE

    return terminal.attempt("protect --verify", work, offline=offline, show_traceback=show_traceback)
