"""The command `protect-app`: the page for a browser on this computer."""

from importlib.util import find_spec
from typing import Annotated, NoReturn

import typer

from imaging.batch import terminal

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> NoReturn:
    """Run the command line with the arguments of the process and exit."""
    app(prog_name="protect-app")
    raise AssertionError("a command in standalone mode exits by itself")


@app.command(cls=terminal.OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
def protect_app(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where to listen; a free one from 7860 on.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page at once.")] = True,
    show_traceback: terminal.ShowTraceback = False,
    version: terminal.Version = False,
) -> int:
    """Open a page in the browser that protects, purifies and examines pictures on this computer.

    It listens on 127.0.0.1 alone, uses models that are on this computer, and keeps nothing.
    """
    if find_spec("gradio") is None:
        return terminal.refuse("protect-app", "the page needs the extra 'app': pip install 'vernis[app]'")

    def work() -> int:
        from protect.app.server import serve

        serve(port, browser=browser, say=terminal.write)
        return terminal.DONE

    return terminal.attempt("protect-app", work, offline=True, show_traceback=show_traceback)
