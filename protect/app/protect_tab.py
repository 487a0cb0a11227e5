"""The first tab: pictures in, protected pictures out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from diffusion.choice import Choice
from imaging.io import read
from imaging.metrics import linf, psnr
from imaging.picture import Picture
from imaging.quantize import quantize
from protect.app import layout, views, wishes
from protect.app.desk import Desk
from protect.app.running import Running, Stopped
from protect.app.studio import Studio
from protect.app.wishes import PURPOSES, STRENGTHS, Wish
from protect.command.batch import Recipe, Record, run
from protect.picture import protect_image
from protect.promise import NO_GUARANTEE


@dataclass(frozen=True, eq=False)
class Result:
    """A finished picture, as the page remembers it."""

    name: str
    record: Record
    recipe: Recipe
    model: Choice
    """The first of those that it was made against."""


_PAINT = gr.Brush(default_size=24, colors=["#ff2d95"], color_mode="fixed")


class ProtectTab:
    """The tab's parts and what they do."""

    def __init__(self, studio: Studio) -> None:
        """Lay the tab out within the current page."""
        self.studio = studio
        with gr.Row():
            with gr.Column():
                self._ask()
            with gr.Column():
                self._show()
        self._connect()

    def _ask(self) -> None:
        self.files = layout.pictures()
        self.purpose = gr.Radio(
            [(purpose.words, name) for name, purpose in PURPOSES.items()],
            value="style",
            label="What should be hard for a machine?",
        )
        self.strength = gr.Radio(
            [(words, name) for name, (words, _) in STRENGTHS.items()],
            value="standard",
            label="How strong?",
            info="Stronger is harder to undo and easier to see.",
        )
        self.sketch = layout.slider("How it will look, before and after", "sketch", height=300)
        self.sketch_words = gr.HTML(elem_id="sketch-words", elem_classes="live")
        self.face = gr.ImageEditor(
            label="Paint over the face",
            type="filepath",
            format="png",
            sources=[],
            transforms=[],
            brush=_PAINT,
            layers=False,
            buttons=["fullscreen"],
            visible=False,
            elem_id="face",
        )
        with gr.Accordion("More choices", open=False):
            self.method = gr.Dropdown(
                wishes.names_of_methods(), value=wishes.AS_ABOVE, label="Method", filterable=True
            )
            self.model = gr.Dropdown(
                wishes.models_here(),
                value=wishes.AUTO,
                label="Model to protect against",
                info="Those on this computer. A folder in diffusers' layout may be typed in.",
                allow_custom_value=True,
            )
            self.survive = gr.CheckboxGroup(
                [(words, name) for name, words in wishes.HANDLING.items()],
                label="Should last through (slower, and weaker where nothing is done to the picture)",
            )
            self.steps = gr.Number(
                label="Steps (empty: the method's own)", value=None, precision=0, minimum=1, maximum=10_000
            )
        self.go, self.cancel = layout.work_buttons("Protect", "protect", self.studio)
        self.status = gr.HTML(elem_id="protect-status", elem_classes="live")

    def _show(self) -> None:
        self.results = gr.State([])
        self.download = layout.download("protect")
        self.which = gr.Dropdown([], label="Picture", visible=False, elem_id="protect-which")
        self.slider = layout.slider("Before and after", "protect-slider")
        self.figures = gr.HTML(elem_id="protect-figures")
        self.change = gr.Image(
            label="The change, eight times enlarged",
            type="filepath",
            buttons=["download", "fullscreen"],
            interactive=False,
            visible=False,
            elem_id="protect-change",
        )
        with gr.Group(visible=False) as self.thief:
            self.prompt = gr.Textbox("an oil painting", label="What would a thief ask for?", max_lines=1)
            self.edit = gr.Button("Let a thief try, before and after", elem_id="protect-edit")
            self.edit_words = gr.HTML(elem_classes="live")
            self.edits = layout.slider("From the original, and from yours", "protect-edits")

    def _connect(self) -> None:
        asked = [self.files, self.purpose, self.strength, self.method, self.model, self.survive, self.steps]
        looks = [self.files, self.purpose, self.strength, self.method]
        gr.on(
            [part.change for part in looks],
            self.sketched,
            looks,
            [self.sketch, self.sketch_words],
            trigger_mode="multiple",  # a later one ends those before it
            show_progress="hidden",
            **layout.SKETCHES,
        )
        needs = [self.files, self.purpose, self.method]
        gr.on([part.change for part in needs], self.to_paint_on, needs, self.face, **layout.AT_ONCE)
        shown = [self.slider, self.change, self.figures, self.edits, self.edit_words]
        out = [self.status, self.go, self.cancel, self.download, self.which, self.results, self.thief, *shown]
        self.go.click(self.protect, [*asked, self.face], out, show_progress="minimal", **layout.WORK)
        self.which.input(self.shown, [self.results, self.which], shown, **layout.AT_ONCE)
        self.edit.click(
            self.edited,
            [self.results, self.which, self.prompt],
            [self.edits, self.edit_words],
            **layout.WORK,
        )

    def sketched(
        self, files: list[str] | None, purpose: str, strength: str, method: str, request: gr.Request
    ) -> tuple[Any, Any]:
        """Show the first picture's middle at this strength, and measure it."""
        hidden, visitor = gr.update(visible=False, value=None), layout.visitor(request)
        wanted, desk = self.studio.sketching(visitor), self.studio.desk(visitor)
        if not files:
            return hidden, ""
        try:
            sketch, same = wishes.sketch_of(Wish(purpose, strength, method))
            images = views.middle(read(files[0]), wishes.SKETCH_SIDE)
            model = "auto" if sketch.origin is not None else self.studio.sketcher
            made = protect_image(images, sketch, model, callback=wanted)
            made = quantize(made, images, sketch.eps)
            shown = views.drawn(images, desk, "sketch-before"), views.drawn(made, desk, "sketch-after")
        except Stopped:
            return gr.skip(), gr.skip()
        except (ValueError, OSError, RuntimeError) as error:
            return hidden, views.sentence(layout.plain(error, files[0]), wrong=True)
        like = "" if same else " Drawn with another method of the same strength, as yours takes long."
        largest, likeness = linf(made, images).item(), psnr(made, images).item()
        words = f"The middle of your first picture: no value changed by more than {largest:.0f} of 255, "
        words += f"PSNR {likeness:.1f} dB. A sketch in a few steps with the built-in model.{like}"
        return gr.update(visible=True, value=shown), views.sentence(words)

    def to_paint_on(self, files: list[str] | None, purpose: str, method: str, request: gr.Request) -> Any:
        """Show the first picture to paint on, where the method needs to know what stays."""
        try:
            if not files or not Wish(purpose, method=method).made.needs_mask:
                return gr.update(visible=False, value=None)
            desk = self.studio.desk(layout.visitor(request))
            sheet = views.drawn(views.small(read(files[0])), desk, "to-paint-on")
        except (ValueError, OSError):  # said beside the sketch
            return gr.update(visible=False, value=None)
        return gr.update(visible=True, value={"background": sheet, "layers": [], "composite": sheet})

    def protect(
        self,
        files: list[str] | None,
        purpose: str,
        strength: str,
        method: str,
        model: str,
        survive: list[str],
        steps: float | None,
        face: dict[str, Any] | None,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Do the work and tell of it; the last yield holds the results."""
        if not files:
            yield self._told("Choose pictures first.", wrong=True)
            return
        visitor = layout.visitor(request)
        self.studio.sketching(visitor)  # ends one that is being made
        desk = self.studio.desk(visitor).cleared()
        records: list[Record] = []
        try:
            count = int(steps) if steps else None
            wish = Wish(purpose, strength, method, model or wishes.AUTO, count, tuple(survive))
            if wish.made.needs_mask:
                wish = _with_mask(wish, files, face)
            recipe, chosen = wishes.recipe_of(wish)
            plan = desk.plan(files, label="protected")
            surrogate = cache(partial(self.studio.surrogate, recipe.method, chosen))
            running = Running(lambda tell: run(plan, recipe, surrogate, progress=tell), total=len(plan.jobs))
            yield self._told("Loading the model …", busy=True)
            for progress in self.studio.follow(visitor, running, records):
                yield self._telling(views.progress_bar(progress, "protecting"), busy=True)
            last = self._finished(records, len(files), desk, recipe, chosen.members[0])
        except (ValueError, OSError, RuntimeError) as error:
            last = self._told(layout.plain(error), wrong=True)
        yield last

    def _finished(
        self, records: list[Record], total: int, desk: Desk, recipe: Recipe, model: Choice
    ) -> list[Any]:
        done = [record for record in records if record.output is not None]
        results = [Result(Path(str(record.output)).name, record, recipe, model) for record in done]
        said = [
            f"Model: {recipe.model}. Made against {recipe.promise.against}.",
            f"Mind: {recipe.promise.not_against}. Protection {NO_GUARANTEE}.",
        ]
        status = views.outcome(records, total, said)
        if not results:
            return self._telling(status)
        archive = desk.zipped([str(record.output) for record in done], "protected.zip")
        names = [result.name for result in results]
        return [
            status,
            *layout.buttons(busy=False),
            gr.update(visible=True, value=str(archive)),
            gr.update(visible=len(names) > 1, choices=names, value=names[0]),
            results,
            gr.update(visible=True),
            *self._views(results[0], desk),
        ]

    def shown(self, results: list[Result], name: str, request: gr.Request) -> list[Any]:
        """Show another of the results."""
        return self._views(_chosen(results, name), self.studio.desk(layout.visitor(request)))

    def _views(self, result: Result, desk: Desk) -> list[Any]:
        original, protected = _pair(result)
        return [
            gr.update(visible=True, value=views.pair(original, protected, desk, result.name)),
            gr.update(visible=True, value=views.change(original, protected, desk, result.name)),
            views.survival_table(result.record.survival or {}),
            gr.update(visible=False, value=None),
            "",
        ]

    def edited(self, results: list[Result], name: str, prompt: str, request: gr.Request) -> tuple[Any, str]:
        """Let the model edit a result and its original with the same noise."""
        result, desk = _chosen(results, name), self.studio.desk(layout.visitor(request))
        try:
            model = self.studio.model(result.model)
            made, does = views.edited(*_pair(result), model, prompt, result.recipe.mask, desk, result.name)
        except (ValueError, OSError, RuntimeError) as error:
            return gr.update(visible=False, value=None), views.sentence(layout.plain(error), wrong=True)
        words = f"{model.name} {does} both with the same noise. Another model may do otherwise."
        return gr.update(visible=True, value=made), views.sentence(words)

    def _told(self, text: str, *, wrong: bool = False, busy: bool = False) -> list[Any]:
        return self._telling(views.sentence(text, wrong=wrong), busy=busy)

    def _telling(self, status: str, *, busy: bool = False) -> list[Any]:
        """Say something; the results of an earlier run are gone from the desk and the page."""
        hidden = gr.update(visible=False, value=None)
        which = gr.update(visible=False, choices=[], value=None)
        gone = [hidden, which, [], gr.update(visible=False), hidden, hidden, "", hidden, ""]
        return [status, *layout.buttons(busy=busy), *gone]


def _with_mask(wish: Wish, files: Sequence[str], face: dict[str, Any] | None) -> Wish:
    if len(files) > 1:
        raise ValueError("one picture at a time, please, where a face is painted: each has its own")
    picture = read(files[0])
    layers = (face or {}).get("layers") or []
    painted = [wishes.mask_from(read(layer), picture.height, picture.width) for layer in layers]
    masks = [mask for mask in painted if mask is not None]
    if not masks:
        raise ValueError("paint over the face first, so that it is known what has to stay yours")
    return replace(wish, mask=torch.stack(masks).any(0))


def _chosen(results: list[Result], name: str | None) -> Result:
    return next((each for each in results if each.name == name), results[0])


def _pair(result: Result) -> tuple[Picture, Picture]:
    return read(result.record.input), read(str(result.record.output))
