"""Contact sheets: rows of small pictures side by side, with headings above and a caption under each row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Cell = Float[Tensor, "3 height width"]
Sheet = Float[Tensor, "1 3 height width"]

LARGEST_SHEET = 24_000_000
"""The most pixels that a sheet may have; cells shrink, and then rows are left out, to stay below."""

_SMALLEST_CELL = 128
_MARGIN, _LINE = 12, 22
_PAPER, _INK, _FAINT = (255, 255, 255), (24, 24, 24), (120, 120, 120)


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the sheet: a caption and its pictures, float in [0,1]; None leaves a cell empty."""

    caption: str
    cells: tuple[Cell | None, ...]


def contact_sheet(rows: Sequence[Row], headings: Sequence[str], *, cell: int = 320) -> Sheet:
    """Draw rows of pictures on white paper, each scaled down (never up) to fit a square cell.

    Args:
        rows: what to show, top to bottom.
        headings: one short title per column.
        cell: side of a cell in pixels. A sheet that would exceed `LARGEST_SHEET` pixels gets smaller cells,
            and, when cells of 96 px are still too many, its last line says how many rows were left out.

    Returns:
        The sheet as images in [0,1].

    Raises:
        ValueError: there are no rows, or a row has another number of cells than there are headings.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    for row in rows:
        if len(row.cells) != len(headings):
            raise ValueError(f"{row.caption!r} has {len(row.cells)} cells for {len(headings)} headings")
    largest = max(
        (max(image.shape[-2:]) for row in rows for image in row.cells if image is not None), default=0
    )
    cell, count = _fit(len(rows), len(headings), min(cell, max(largest, _SMALLEST_CELL)))
    canvas = Image.new("RGB", _size(count, len(headings), cell), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for column, heading in enumerate(headings):
        draw.text((_left(column, cell), _MARGIN // 2), _shortened(heading, cell, font), _INK, font)
    for index, row in enumerate(rows[:count]):
        _draw_row(canvas, draw, font, row, _top(index, cell), cell)
    if count < len(rows):
        note = f"and {len(rows) - count} more, left out to keep this sheet small"
        draw.text((_MARGIN, canvas.height - _LINE), note, _FAINT, font)
    pixels = torch.from_numpy(np.asarray(canvas).copy())
    return pixels.permute(2, 0, 1)[None].float() / 255


def magnified(original: Cell, changed: Cell, *, gain: float = 8.0) -> Cell:
    """Show a change as a picture: mid-grey where nothing moved, `gain` times the difference around it."""
    return ((changed - original) * gain + 0.5).clamp(0, 1)


def _fit(rows: int, columns: int, cell: int) -> tuple[int, int]:
    """The cell side and the number of rows that fit into a sheet of the largest size."""
    while cell > _SMALLEST_CELL and math.prod(_size(rows, columns, cell)) > LARGEST_SHEET:
        cell = max(_SMALLEST_CELL, cell * 7 // 8)
    while rows > 1 and math.prod(_size(rows, columns, cell)) > LARGEST_SHEET:
        rows -= 1
    return cell, rows


def _size(rows: int, columns: int, cell: int) -> tuple[int, int]:
    return _left(columns, cell), _top(rows, cell) + _LINE


def _left(column: int, cell: int) -> int:
    return _MARGIN + column * (cell + _MARGIN)


def _top(row: int, cell: int) -> int:
    return _MARGIN + _LINE + row * (cell + _LINE + _MARGIN)


def _draw_row(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    row: Row,
    top: int,
    cell: int,
) -> None:
    for column, image in enumerate(row.cells):
        if image is not None:
            canvas.paste(_thumbnail(image, cell), (_left(column, cell), top))
    room = canvas.width - 2 * _MARGIN
    draw.text((_MARGIN, top + cell + 2), _shortened(row.caption, room, font), _INK, font)


def _thumbnail(image: Cell, cell: int) -> Image.Image:
    levels = (image.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8)
    thumbnail = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    thumbnail.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return thumbnail


def _shortened(text: str, room: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    # Names of files may hold line breaks and characters that the font lacks; a sheet shows one line all the
    # same.
    text = "".join(character if character.isprintable() else "?" for character in text)
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
