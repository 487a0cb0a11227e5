"""What the page shows of a picture: small versions, the part in its middle, changes, edits, figures."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffusion.model import DiffusionModel
from imaging.batch.reports import duration
from imaging.io import write
from imaging.picture import Images, Picture, on_white
from imaging.sheet import magnified
from imaging.transforms import resize
from protect.app.desk import Desk
from protect.app.running import Progress
from protect.command.report import centre
from protect.frames import Where
from protect.threats.inpainting import Inpainting
from protect.verify.measures import can_edit, edits

SHOWN_SIDE = 1024
"""Longest side of what a browser is given to look at."""

_SEED = 1000
"""Of a thief's noise: not that of a protection."""

_FLAG = re.compile(r"(^|\s)--([a-z]+)(:)?")

_HANDLED = {
    "file": "in the file",
    "jpeg75": "saved as JPEG, quality 75",
    "half_size": "made half as large, and back",
    "blur": "blurred a little",
}


def drawn(images: Images, desk: Desk, name: str) -> str:
    """Write one image as a PNG for the browser and return its path."""
    with desk.showing(f"{name}.png") as path:
        write(Picture.from_pixels(images), path, overwrite=True)
    return str(path)


def small(picture: Picture) -> Images:
    """Return the first frame, on white where it is transparent, shrunk to `SHOWN_SIDE`."""
    shown, side = on_white(picture), max(picture.height, picture.width)
    return shown if side <= SHOWN_SIDE else resize(shown, SHOWN_SIDE / side).clamp(0, 1)


def middle(picture: Picture, side: int = SHOWN_SIDE) -> Images:
    """Return the middle of the first frame at full resolution."""
    return on_white(picture.region(centre(picture, side)))


def pair(original: Picture, protected: Picture, desk: Desk, name: str) -> tuple[str, str]:
    """Draw before and after for the slider."""
    return drawn(small(original), desk, f"{name}-before"), drawn(small(protected), desk, f"{name}-after")


def change(original: Picture, protected: Picture, desk: Desk, name: str) -> str:
    """Draw the change eight times enlarged, of the middle: shrinking would average it away."""
    before, after = (middle(picture) for picture in (original, protected))
    return drawn(magnified(before, after), desk, f"{name}-change")


def edited(
    original: Picture,
    protected: Picture,
    model: DiffusionModel,
    prompt: str,
    kept: Where | None,
    desk: Desk,
    name: str,
) -> tuple[tuple[str, str], str]:
    """Draw what a thief makes of the middle of both, and say what he does.

    Where something is `kept` he repaints the rest. A model that cannot edit by itself rebuilds the pictures.

    Raises ValueError if nothing is to be repainted in the middle.
    """
    box = centre(original, model.comfortable)
    before, after = (on_white(picture.region(box)) for picture in (original, protected))
    if kept is not None and (model.inpaints or can_edit(model)):
        mask = (~kept[..., box.top : box.bottom, box.left : box.right]).float()
        threat = Inpainting(prompt=prompt, mask=mask).suited(model)
        made = [threat(model, images, seed=_SEED) for images in (before, after)]
        does = "repaints around what you painted over, in the middle of"
    else:
        made = list(edits(model, before, after, prompt=prompt, seed=_SEED))
        does = "edits the middle of" if can_edit(model) else "cannot edit by itself, and only rebuilds"
    paths = [drawn(images.cpu(), desk, f"{name}-edit-{place}") for place, images in enumerate(made)]
    return (paths[0], paths[1]), does


def survival_table(survival: Mapping[str, float]) -> str:
    """Return a table of how much of the change is left after ordinary handling."""
    rows = "".join(
        f"<tr><th scope='row'>{_HANDLED.get(name, escape(name))}</th><td>{share:.0%}</td></tr>"
        for name, share in survival.items()
    )
    caption = "How much of the protective change is left: a warning light, no proof"
    return f"<table class='figures'><caption>{caption}</caption><tbody>{rows}</tbody></table>"


def outcome(records: Sequence[Any], total: int, said: Sequence[str]) -> str:
    """Say what became of `total` pictures, of which there are records unless it was cancelled, and more."""
    done = sum(record.output is not None for record in records)
    cancelled = "" if len(records) == total else f" Cancelled: {total - len(records)} not done."
    head = sentence(f"{done} of {total} done.{cancelled}", wrong=done < total)
    return f"{head}<ul>{''.join(map(_told, records))}</ul>{sentence(' '.join(said))}"


def _told(record: Any) -> str:
    name = escape(Path(record.input).name)
    if record.status == "failed":
        return f"<li><b>{name}</b>: not done. {escape(without_flags(record.error or ''))}</li>"
    facts = f"no value changed by more than {record.linf:.3g} of 255, likeness {record.ssim:.3f} of 1"
    notes = "".join(f" {escape(note)}." for note in record.notes)
    return f"<li><b>{name}</b>: done in {duration(record.seconds)}; {facts}.{notes}</li>"


def progress_bar(progress: Progress, verb: str) -> str:
    """Return a bar with words, read aloud by screen readers as it changes."""
    left = progress.seconds_left
    guess = "" if left is None else f", about {duration(left)} left"
    at = f" ({escape(progress.name)})" if progress.name else ""
    words = f"{verb} picture {min(progress.finished + 1, progress.total)} of {progress.total}{at}{guess}"
    return f"<progress max='1' value='{progress.share:.3f}' aria-label='progress'></progress><p>{words}</p>"


def without_flags(reason: str) -> str:
    """Return why something failed in the words of a page: a command line's flags mean nothing there."""
    reason = reason.replace(" (unexpected; --traceback shows where)", "")
    return _FLAG.sub(lambda found: "" if found[3] else f"{found[1]}the choice of {found[2]}", reason).strip()


def sentence(text: str, *, wrong: bool = False) -> str:
    """Return a line for people, marked where something went wrong."""
    return f"<p class='{'wrong' if wrong else 'fine'}'>{escape(text)}</p>"
