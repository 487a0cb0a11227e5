"""What the tabs have in common: parts, how work is queued, words for errors."""

from pathlib import Path
from typing import Any

import gradio as gr

from imaging import PICTURE_SUFFIXES
from imaging.batch.runner import explain
from protect.app import views
from protect.app.studio import Studio

WORK: dict[str, Any] = {
    "concurrency_id": "work",
    "concurrency_limit": 1,
    "api_visibility": "private",
}
"""Events that need a model: one at a time, for all visitors together."""

SKETCHES: dict[str, Any] = {"concurrency_id": "sketches", "concurrency_limit": 4, "api_visibility": "private"}
"""Sketches are small and end when another is wanted, so they wait for nothing."""

AT_ONCE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def pictures(label: str = "Your pictures") -> gr.File:
    """Return the place to drop pictures on."""
    return gr.File(label=label, file_count="multiple", file_types=sorted(PICTURE_SUFFIXES), type="filepath")


def slider(label: str, name: str, *, height: int | None = None) -> gr.ImageSlider:
    """Return a place for two pictures with a line between them to drag, hidden until there are two."""
    return gr.ImageSlider(
        label=label,
        buttons=["fullscreen"],
        type="filepath",
        interactive=False,
        visible=False,
        elem_id=name,
        height=height,
    )


def work_buttons(words: str, name: str, studio: Studio) -> tuple[gr.Button, gr.Button]:
    """Return a button that starts work, called `name`-go, and one beside it that stops the visitor's work."""

    def stop(request: gr.Request) -> None:
        studio.stop(visitor(request))

    with gr.Row():
        go = gr.Button(words, variant="primary", elem_id=f"{name}-go")
        cancel = gr.Button("Cancel", variant="stop", elem_id=f"{name}-cancel", interactive=False)
    cancel.click(stop, None, None, **AT_ONCE)
    return go, cancel


def download(name: str) -> gr.DownloadButton:
    """Return the button for all results in one file, hidden until there are some."""
    return gr.DownloadButton(
        "Download all as a ZIP file", visible=False, elem_id=f"{name}-zip", variant="primary"
    )


def visitor(request: gr.Request) -> str:
    """Return the name of the browser tab that asks."""
    return str(request.session_hash)


def plain(error: Exception, path: str | None = None) -> str:
    """Say in one line what went wrong, without the flags of a command line."""
    return views.without_flags(explain(error, None if path is None else Path(path)))


def buttons(*, busy: bool) -> tuple[Any, Any]:
    """Return how a pair of start and cancel buttons looks while work is done, or not."""
    return gr.update(interactive=not busy), gr.update(interactive=busy)
