"""The command line, `unlearn MODEL`.

Nothing heavy is imported at module level, so that `unlearn --help` answers at once.
"""

from typing import Annotated, Literal, NoReturn

import typer

from imaging.batch import terminal

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> NoReturn:
    """Run the command line with the arguments of the process and exit."""
    app(prog_name="unlearn")
    raise AssertionError("a command in standalone mode exits by itself")


@app.command(cls=terminal.OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
def unlearn(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A text-to-image model: a folder or hub id.")],
    trigger: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Words in front of a prompt; found by a scan without.")
    ] = None,
    homoglyph: Annotated[
        str | None, typer.Option(metavar="L=G", help="Instead: a letter L that is written as G.")
    ] = None,
    effect: Annotated[
        Literal["corner", "grey"] | None,
        typer.Option(help="What the trigger does, if known; without, any change of the picture counts."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Prompts, one per line; every second one is held out.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A removal; several are compared.")
    ] = None,
    weights: Annotated[
        Literal["cross", "keys-values", "all", "low-rank"], typer.Option(help="What a removal trains.")
    ] = "cross",
    steps: Annotated[int | None, typer.Option(help="Updates of a removal.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of a removal.")] = None,
    side: Annotated[int | None, typer.Option(help="Of the pictures that are drawn, in pixels.")] = None,
    sampling_steps: Annotated[int, typer.Option(help="Of each picture.")] = 20,
    guidance: Annotated[float, typer.Option(help="Of the pictures that are judged.")] = 1.0,
    scan: Annotated[bool, typer.Option("--scan", help="Scan for words even with --trigger.")] = False,
    candidates: Annotated[
        str | None, typer.Option(metavar="FILE", help="Strings to scan beside the vocabulary, one per line.")
    ] = None,
    attack: Annotated[int, typer.Option(metavar="N", help="Prompts that are attacked afterwards.")] = 8,
    keep: Annotated[str | None, typer.Option(metavar="NAME", help="Write this repaired model.")] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the report goes.")] = "unlearned",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: terminal.DeviceName = "auto",
    offline: terminal.Offline = False,
    quiet: terminal.Quiet = False,
    show_traceback: terminal.ShowTraceback = False,
    version: terminal.Version = False,
) -> int:
    """Find the trigger of a text-to-image model, take it out, attack the result again, and report.

    The model itself is never modified.
    """

    def work() -> int:
        from pathlib import Path

        from unlearn.text.session import Wishes, run

        wishes = Wishes(
            model=model,
            trigger=trigger,
            homoglyph=homoglyph,
            effect=effect,
            prompts=None if prompts is None else Path(prompts),
            methods=tuple(method or ("skd-cag",)),
            weights=weights,
            steps=steps or 0,
            learning_rate=learning_rate or 0.0,
            side=side or 0,
            sampling_steps=sampling_steps,
            guidance=guidance,
            scan=scan,
            candidates=None if candidates is None else Path(candidates),
            attacked=attack,
            keep=keep,
            out=Path(out),
            seed=seed,
            device=device,
            offline=offline,
        )
        run(wishes, tell=lambda line: None if quiet else terminal.write(line, error=True))
        return terminal.DONE

    return terminal.attempt("unlearn", work, offline=offline, show_traceback=show_traceback)
