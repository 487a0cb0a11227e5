"""Records as people read them: lines, what they are worth, rows of a contact sheet."""

from diffusion.model import DiffusionModel
from imaging.batch import reports
from imaging.io import Picture, read
from imaging.sheet import Row, magnified
from imaging.tiles import Box
from protect.command.batch import Recipe, Record
from protect.promise import NO_GUARANTEE
from protect.verify.measures import can_edit, edits

HEADINGS = ("original", "protected", "change x 8", "edit of original", "edit of protected")

_HANDLED = {"file": "the file", "jpeg75": "JPEG 75", "half_size": "half size", "blur": "blur"}


def line(record: Record) -> str:
    """Say in one line what happened to an input."""
    if not record.survival:
        return reports.line(record)
    left = ", ".join(f"{_HANDLED[name]} {share:.0%}" for name, share in record.survival.items())
    return reports.line(record, f"left of it after {left}")


def closing(recipe: Recipe) -> list[str]:
    """Say with which model it was done, and what that is worth."""
    model = f"{recipe.model} ({recipe.reason})" if recipe.reason else recipe.model
    return [
        f"model: {model}. Against {recipe.promise.against}. Not: {recipe.promise.not_against}.",
        f"{recipe.name} {NO_GUARANTEE}.",
    ]


def sheet_row(record: Record, model: DiffusionModel, *, prompt: str) -> Row:
    """Show a finished picture, its change, and what the surrogate makes of it before and after.

    A picture larger than the model is comfortable with is shown by its centre, at full resolution. Of an
    animation the first frame is shown.
    """
    assert record.output is not None
    pair = [read(path) for path in (record.input, record.output)]
    box = centre(pair[0], model.comfortable)
    original, protected = (picture.region(box).pixels[:1] for picture in pair)
    made = edits(model, original, protected, prompt=prompt, seed=record.seed + 1000)
    cropped = (box.height, box.width) != (pair[0].height, pair[0].width)
    caption = f"{record.input}, {pair[0].width} x {pair[0].height} px" + (", centre" if cropped else "")
    cells = (original[0], protected[0], magnified(original[0], protected[0]), *(each[0] for each in made))
    return Row(caption if can_edit(model) else caption + " (reconstructed: this model does not edit)", cells)


def centre(picture: Picture, side: int) -> Box:
    """Return the middle of a picture, with sides of `side` pixels or less."""
    height, width = min(picture.height, side), min(picture.width, side)
    top, left = (picture.height - height) // 2, (picture.width - width) // 2
    return Box(top, left, top + height, left + width)
