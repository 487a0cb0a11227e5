"""The page's server: on this computer alone, in a folder that is deleted when it ends."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

_PREFIX = "vernis-page-"
_LARGEST_FILE = 512 * 2**20
_LARGEST_BODY = 4 * _LARGEST_FILE
"""Bytes of one request, which may bring several files."""


@contextmanager
def workshop() -> Iterator[Path]:
    """Yield a folder that nobody else can read and that is gone afterwards; those of dead servers go too."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def serve(port: int | None, *, browser: bool, say: Callable[[str], object]) -> None:
    """Serve the page until somebody ends it by Ctrl-C or a signal.

    Raises OSError if the port is taken.
    """
    with workshop() as folder:
        uploads = folder / "uploads"
        uploads.mkdir()
        _quiet(uploads)
        import gradio as gr
        from starlette.middleware import Middleware

        from protect.app.guard import Guard
        from protect.app.page import CSS, HEAD, SCRIPT, THEME, build
        from protect.app.studio import Studio

        studio = Studio(folder)
        studio.warm_up()
        page = build(studio, uploads).queue(default_concurrency_limit=4)
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            inbrowser=browser,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            max_file_size=_LARGEST_FILE,
            app_kwargs={"middleware": [Middleware(Guard, largest_body=_LARGEST_BODY)], "docs_url": None},
            theme=THEME,
            css=CSS,
            js=SCRIPT,
            head=HEAD,
        )
        assert isinstance(page, gr.Blocks)
        say(f"Vernis is at {address} and ends with Ctrl-C. Nothing leaves this computer.")
        ended = threading.Event()
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            ended.wait()
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)


def _quiet(uploads: Path) -> None:
    """Settings that gradio and the hub's client read when they are imported: stay here, tell nobody."""
    os.environ |= {
        "GRADIO_TEMP_DIR": str(uploads),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SHARE": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _abandoned(folder: Path) -> bool:
    """Whether the server that made a folder is no more; false where that cannot be told."""
    number = folder.name.removeprefix(_PREFIX).partition("-")[0]
    if not number.isdecimal() or os.name != "posix":
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
