"""The page: three tabs, what it looks like, and what is cleared away when a visitor leaves."""

import shutil
from pathlib import Path

import gradio as gr

from protect.app import layout
from protect.app.detect_tab import DetectTab
from protect.app.protect_tab import ProtectTab
from protect.app.purify_tab import PurifyTab
from protect.app.studio import Studio

TITLE = "Vernis"
THEME = gr.themes.Default(
    # Names alone: fonts of the web would be fetched from it.
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
    primary_hue="teal",
)
HEAD = '<meta name="referrer" content="no-referrer">'
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
_WORDS = """# Vernis
Pictures stay on this computer: nothing is sent anywhere, and nothing is kept when you close this page.
"""
_HOUR = 3600


def build(studio: Studio, uploads: Path) -> gr.Blocks:
    """Lay out the page. `uploads` is where gradio puts what visitors hand in."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_HOUR, 24 * _HOUR)) as page:
        gr.Markdown(_WORDS)
        with gr.Tab("Protect"):
            ProtectTab(studio)
        with gr.Tab("Purify"):
            gr.Markdown("Take protection out again, as a thief would: see what it is worth.")
            PurifyTab(studio)
        with gr.Tab("Detect"):
            gr.Markdown("Is a picture made by a machine? The answer is a guess.")
            DetectTab(studio)

        def leave(request: gr.Request) -> None:
            if studio.leave(layout.visitor(request)):
                sweep(uploads)

        page.unload(leave)
    return page


def sweep(folder: Path) -> None:
    """Delete all that lies in a folder."""
    for entry in folder.iterdir():
        shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
