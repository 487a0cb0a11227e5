"""One run of the command line without its terminal: what is prepared, done, reported, and said on Ctrl-C."""

import hashlib
import traceback
from collections.abc import Sequence
from pathlib import Path

from diffusion.choice import Precision
from imaging.batch.discover import Plan, plan
from imaging.batch.runner import explain
from imaging.batch.saving import check_extras
from imaging.batch.session import Screen, follow
from imaging.errors import PictureError
from imaging.formats import format_of
from imaging.io import write
from imaging.picture import Picture
from imaging.sheet import contact_sheet
from protect.command.batch import Recipe, Record, Surrogate, run
from protect.command.report import HEADINGS, closing, line, sheet_row
from protect.ensemble import members
from protect.method import ProtectionMethod
from protect.picture import MaskLike, check_mask, read_mask
from protect.promise import promise
from protect.surrogate import Surrogates

_LARGEST_SHEET = 40


def prepare(
    paths: Sequence[str], *, out: str | None, recursive: bool, report: str | None, sheet: str | None
) -> Plan:
    """Plan the work and make sure that report and sheet can be written and replace nothing.

    Raises ValueError or OSError with a sentence.
    """
    made = plan(paths, out=out, recursive=recursive)
    check_extras(made, {"--report": report, "--sheet": sheet})
    if sheet is not None:
        format_of(sheet)
    return made


def recipe_for(
    name: str,
    method: ProtectionMethod,
    model: Surrogates,
    *,
    mask: MaskLike | None,
    seed: int,
    precision: Precision,
) -> Recipe:
    """Put together what decides about the results.

    Raises ValueError when the mask cannot be read or hides everything, or the method lacks one that it needs.
    """
    try:
        where = None if mask is None else read_mask(mask)
        check_mask(method, where)
    except ValueError as error:
        raise ValueError(f"--mask: {error}") from error
    return Recipe(
        name=name.lower(),
        method=method,
        model=model.label,
        promise=promise(name, *(member.name for member in model.members)),
        reason=model.reason,
        seed=seed,
        mask=where,
        mask_digest=None if where is None else hashlib.sha256(where.numpy().tobytes()).hexdigest(),
        model_identity=model.identity,
        precision=precision,
    )


def work(
    plan: Plan,
    recipe: Recipe,
    surrogate: Surrogate,
    screen: Screen,
    *,
    report: str | None = None,
    sheet: str | None = None,
    overwrite: bool = False,
    show_traceback: bool = False,
) -> int:
    """Do what is prepared and return the exit code. `surrogate` loads the model; its errors pass through."""
    failed = traceback.print_exception if show_traceback else None
    records = run(plan, recipe, surrogate, overwrite=overwrite, progress=screen.update, failed=failed)

    def draw(made: Sequence[Record]) -> bool:
        return sheet is None or _draw_sheet(sheet, made, recipe, surrogate, screen)

    return follow(
        plan,
        records,
        screen,
        label="protected",
        closing=closing(recipe),
        report=report,
        tell=line,
        after=draw,
    )


def _draw_sheet(
    sheet: str,
    records: Sequence[Record],
    recipe: Recipe,
    surrogate: Surrogate,
    screen: Screen,
) -> bool:
    shown = [record for record in records if record.output is not None]
    if not shown:
        return True
    try:
        model, prompt = members(surrogate())[0], recipe.method.prompt
        rows = [sheet_row(record, model, prompt=prompt) for record in shown[:_LARGEST_SHEET]]
        Path(sheet).parent.mkdir(parents=True, exist_ok=True)
        write(Picture.from_pixels(contact_sheet(rows, HEADINGS)), sheet, overwrite=True)
    except (PictureError, OSError, RuntimeError, ValueError) as error:
        screen.complain(f"the sheet was not drawn: {explain(error)}")
        return False
    if len(shown) > _LARGEST_SHEET:
        screen.say(f"the sheet shows the first {_LARGEST_SHEET} of {len(shown)} pictures")
    return True
