"""Records as people read them: lines, a summary, rows of a contact sheet."""

from collections import Counter
from collections.abc import Sequence

from diffusion.model import DiffusionModel
from imaging.io import Picture, read
from imaging.sheet import Row, magnified
from imaging.tiles import Box
from protect.batch import Recipe, Record
from protect.promise import NO_GUARANTEE
from protect.verify import edits

HEADINGS = ("original", "protected", "change x 8", "edit of original", "edit of protected")

_HANDLED = {"file": "the file", "jpeg75": "JPEG 75", "half_size": "half size", "blur": "blur"}


def line(record: Record) -> str:
    """Say in one line what happened to an input."""
    if record.status == "failed":
        return f"failed   {record.input}: {record.error}"
    if record.status == "skipped":
        return f"skipped  {record.input}: {record.output} is done already, with the same settings"
    facts = [f"change {record.linf:.3g} of 255", f"PSNR {record.psnr:.1f} dB", f"SSIM {record.ssim:.3f}"]
    if record.survival:
        left = ", ".join(f"{_HANDLED[name]} {share:.0%}" for name, share in record.survival.items())
        facts.append(f"left of it after {left}")
    facts += [f"{record.seconds:.1f} s", *record.notes]
    return f"done     {record.input} -> {record.output}: {'; '.join(facts)}"


def summary(records: Sequence[Record], recipe: Recipe) -> list[str]:
    """Say what was done with which model, and what that is worth."""
    counts = Counter(record.status for record in records)
    return [
        f"{counts['done']} done, {counts['skipped']} skipped, {counts['failed']} failed",
        f"model: {recipe.model}. Against {recipe.promise.against}. Not: {recipe.promise.not_against}.",
        f"{recipe.name} {NO_GUARANTEE}.",
    ]


def sheet_row(record: Record, model: DiffusionModel, *, prompt: str) -> Row:
    """Show a finished picture, its change, and what the surrogate makes of it before and after.

    A picture larger than the model is comfortable with is shown by its centre, at full resolution. Of an
    animation the first frame is shown.
    """
    assert record.output is not None
    pair = [read(path) for path in (record.input, record.output)]
    box = _centre(pair[0], model.comfortable)
    original, protected = (picture.region(box).pixels[:1] for picture in pair)
    made = edits(model, original, protected, prompt=prompt, seed=record.seed + 1000)
    cropped = (box.height, box.width) != (pair[0].height, pair[0].width)
    caption = f"{record.input}, {pair[0].width} x {pair[0].height} px" + (", centre" if cropped else "")
    cells = (original[0], protected[0], magnified(original[0], protected[0]), *(each[0] for each in made))
    return Row(
        caption if model.has_denoiser else caption + " (reconstructed, not edited: no denoiser)", cells
    )


def _centre(picture: Picture, side: int) -> Box:
    height, width = min(picture.height, side), min(picture.width, side)
    top, left = (picture.height - height) // 2, (picture.width - width) // 2
    return Box(top, left, top + height, left + width)
