"""The second tab: perturbations taken out again, as a thief or a careful reader would."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

from diffusion.choice import choose
from imaging.io import read
from protect.app import layout, views, wishes
from protect.app.running import Running
from protect.app.studio import Studio
from purify.batch import Recipe, Record, run
from purify.cli import PROMISE
from purify.methods import METHODS, create, entry, options


class PurifyTab:
    """The tab's parts and what they do."""

    def __init__(self, studio: Studio) -> None:
        """Lay the tab out within the current page."""
        self.studio = studio
        with gr.Row():
            with gr.Column():
                self.files = layout.pictures()
                self.method = gr.Dropdown(
                    [(f"{name}: {row.summary}", name) for name, row in METHODS.items()],
                    value="diffpure",
                    label="How?",
                )
                self.model = gr.Dropdown(
                    wishes.models_here(denoiser=True),
                    value=wishes.AUTO,
                    label="Diffusion model",
                    allow_custom_value=True,
                )
                self.t = gr.Slider(
                    10,
                    400,
                    value=100,
                    step=10,
                    label="How deep into the noise? More removes more, and changes more",
                )
                self.go, self.cancel = layout.work_buttons("Purify", "purify", studio)
                self.status = gr.HTML(elem_id="purify-status", elem_classes="live")
            with gr.Column():
                self.download = layout.download("purify")
                self.slider = layout.slider("The first picture, before and after", "purify-slider")
        self.method.change(
            lambda name: gr.update(visible="t" in options(name)), self.method, self.t, **layout.AT_ONCE
        )
        out = [self.status, self.go, self.cancel, self.download, self.slider]
        asked = [self.files, self.method, self.model, self.t]
        self.go.click(self.purify, asked, out, show_progress="minimal", **layout.WORK)

    def purify(
        self, files: list[str] | None, method: str, model: str, t: float, request: gr.Request
    ) -> Iterator[list[Any]]:
        """Do the work and tell of it; the last yield holds the results."""
        if not files:
            yield _telling(views.sentence("Choose pictures first.", wrong=True))
            return
        visitor = layout.visitor(request)
        desk = self.studio.desk(visitor, "purify").cleared()
        records: list[Record] = []
        try:
            settings = {"t": int(t)} if "t" in options(method) else {}
            prior = choose(model or wishes.AUTO) if entry(method).needs_model else None
            recipe = Recipe(
                method,
                settings,
                None if prior is None else prior.label,
                model_identity=None if prior is None else prior.identity,
            )
            purifier = cache(
                lambda: create(method, None if prior is None else self.studio.model(prior), **settings)
            )
            plan = desk.plan(files, label="purified")
            running = Running(lambda tell: run(plan, recipe, purifier, progress=tell), total=len(plan.jobs))
            yield _telling(views.sentence("Loading the model …"), busy=True)
            for progress in self.studio.follow(visitor, running, records):
                yield _telling(views.progress_bar(progress, "purifying"), busy=True)
            done = [record for record in records if record.output is not None]
            status = views.outcome(records, len(files), [f"Model: {recipe.model or 'none'}.", PROMISE])
            if not done:
                yield _telling(status)
                return
            archive = desk.zipped([str(record.output) for record in done], "purified.zip")
            first = done[0]
            shown = views.pair(read(first.input), read(str(first.output)), desk, Path(str(first.output)).stem)
        except (ValueError, OSError, RuntimeError) as error:
            yield _telling(views.sentence(layout.plain(error), wrong=True))
            return
        yield [
            status,
            *layout.buttons(busy=False),
            gr.update(visible=True, value=str(archive)),
            gr.update(visible=True, value=shown),
        ]


def _telling(status: str, *, busy: bool = False) -> list[Any]:
    hidden = gr.update(visible=False, value=None)
    return [status, *layout.buttons(busy=busy), hidden, hidden]
