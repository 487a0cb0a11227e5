"""The third tab: is a picture generated?"""

from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from detect.batch import Wishes, run
from detect.builtin import load_detector
from detect.cli import PROMISE
from detect.detector import Detector
from detect.record import Record
from protect.app import layout, views
from protect.app.running import Running
from protect.app.studio import Studio


class DetectTab:
    """The tab's parts and what they do."""

    def __init__(self, studio: Studio) -> None:
        """Lay the tab out within the current page."""
        self.studio, self.detector = studio, cache(_shipped)
        self.files = layout.pictures()
        self.go, self.cancel = layout.work_buttons("Look", "detect", studio)
        self.status = gr.HTML(elem_id="detect-status", elem_classes="live")
        out = [self.status, self.go, self.cancel]
        self.go.click(self.detect, self.files, out, show_progress="minimal", **layout.WORK)

    def detect(self, files: list[str] | None, request: gr.Request) -> Iterator[list[Any]]:
        """Judge each picture and tell of it."""
        if not files:
            yield [views.sentence("Choose pictures first.", wrong=True), *layout.buttons(busy=False)]
            return
        visitor = layout.visitor(request)
        records: list[Record] = []
        plan = self.studio.desk(visitor, "detect").cleared().plan(files, label="heatmap")
        try:
            yield [views.sentence("Looking …"), *layout.buttons(busy=True)]
            running = Running(
                lambda tell: run(plan, self.detector(), wishes=Wishes(explanations=True), progress=tell),
                total=len(plan.jobs),
            )
            for progress in self.studio.follow(visitor, running, records):
                yield [views.progress_bar(progress, "looking at"), *layout.buttons(busy=True)]
        except (ValueError, OSError, RuntimeError) as error:
            yield [views.sentence(layout.plain(error), wrong=True), *layout.buttons(busy=False)]
            return
        yield [_answers(records, len(files)), *layout.buttons(busy=False)]


def _shipped() -> Detector:
    return load_detector("builtin")


def _answers(records: list[Record], total: int) -> str:
    rows = "".join(map(_row, records))
    head = "<tr><th scope='col'>picture</th><th scope='col'>answer</th><th scope='col'>what to know</th></tr>"
    cancelled = "" if len(records) == total else views.sentence(f"{total - len(records)} not looked at.")
    table = f"<table class='figures'><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f"{table}{cancelled}{views.sentence(PROMISE)}"


def _row(record: Record) -> str:
    name = escape(Path(record.path).name)
    if record.status == "failed":
        why = views.without_flags(record.error or "")
        return f"<tr><th scope='row'>{name}</th><td>not read</td><td>{escape(why)}</td></tr>"
    told = escape("; ".join([*record.warnings, *record.explanation]))
    # A percentage beside "unsure" would be read as the answer that the detector does not give.
    answer = "unsure" if record.label == "unsure" else f"{record.label}, {record.prob_fake:.0%} for generated"
    return f"<tr><th scope='row'>{name}</th><td>{answer}</td><td>{told}</td></tr>"
