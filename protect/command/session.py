"""One run of the command line without its terminal: what is prepared, done, reported, and said on Ctrl-C."""

import hashlib
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from diffusion.choice import Precision
from imaging.batch.discover import Job, Plan, plan
from imaging.batch.reports import is_report
from imaging.batch.runner import explain
from imaging.batch.saving import check_extras, is_sheet, write_sheet
from imaging.batch.session import Screen, follow, in_order
from imaging.batch.terminal import FAILED
from imaging.errors import PictureError
from imaging.formats import format_of
from imaging.sheet import contact_sheet
from protect.command.batch import Recipe, Record, Surrogate, run
from protect.command.engines import Engine, places
from protect.command.engines.places import Errands
from protect.command.manifest import check_arrow, is_manifest, write_manifest
from protect.command.report import HEADINGS, closing, line, sheet_row
from protect.ensemble import members
from protect.method import ProtectionMethod
from protect.picture import MaskLike, check_mask, read_mask
from protect.promise import promise
from protect.surrogate import Surrogates

_LARGEST_SHEET = 40


def prepare(
    paths: Sequence[str],
    *,
    out: str | None,
    recursive: bool,
    report: str | None,
    sheet: str | None,
    manifest: str | None = None,
    mask: str | None = None,
    overwrite: bool = False,
    urls: bool = False,
) -> Plan | Errands:
    """Plan the work and make sure that report, sheet and manifest can be written and replace nothing else.

    With `overwrite` they may replace what this run neither reads nor makes. `urls` says that inputs and
    outputs may be URLs.

    Raises ValueError or OSError with a sentence.
    """
    url = next(filter(places.is_url, [*paths, out or ""]), None)
    if url is not None and not urls:
        raise ValueError(f"{url} is a URL; --engine ray reads and writes those")
    if url is not None and sheet is not None:
        raise ValueError("--sheet shows files of this computer; leave it out, or name no URL")
    if url is None:
        made = files = plan(paths, out=out, recursive=recursive)
    else:
        made = places.plan(paths, out=out, recursive=recursive)
        files = Plan([Job(Path(each.input), Path(each.output)) for each in made.jobs])
    if sheet is not None:
        format_of(sheet)
    if manifest is not None:
        check_arrow()
    extras = {
        "--report": (report, partial(is_report, kind=Record)),
        "--sheet": (sheet, is_sheet),
        "--manifest": (manifest, is_manifest),
    }
    check_extras(files, extras, others=[mask], overwrite=overwrite)
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
    plan: Plan | Errands,
    recipe: Recipe,
    surrogate: Surrogate,
    screen: Screen,
    *,
    report: str | None = None,
    sheet: str | None = None,
    overwrite: bool = False,
    show_traceback: bool = False,
    engine: Engine | None = None,
    manifest: str | None = None,
) -> int:
    """Do what is prepared and return the exit code. `surrogate` loads the model; its errors pass through."""
    failed = traceback.print_exception if show_traceback else None
    if engine is None:
        assert isinstance(plan, Plan), "URLs are of the engine that reads them"
        records = run(plan, recipe, surrogate, overwrite=overwrite, progress=screen.update, failed=failed)
    else:
        records = engine(plan, progress=screen.update, failed=failed)
    made: list[Record] = []

    def draw(made: Sequence[Record]) -> bool:
        return sheet is None or _draw_sheet(sheet, made, recipe, surrogate, screen)

    code = follow(
        plan,
        _noted(records, made),
        screen,
        label="protected",
        closing=closing(recipe),
        report=report,
        tell=line,
        after=draw,
    )
    if manifest is not None:
        try:
            write_manifest(in_order(plan, made), Path(manifest))
        except OSError as error:
            screen.complain(f"the manifest was not written: {explain(error)}")
            return code or FAILED
    return code


def _noted(records: Iterator[Record], made: list[Record]) -> Iterator[Record]:
    for record in records:
        made.append(record)
        yield record


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
        write_sheet(contact_sheet(rows, HEADINGS), Path(sheet))
    except (PictureError, OSError, RuntimeError, ValueError) as error:
        screen.complain(f"the sheet was not drawn: {explain(error)}")
        return False
    if len(shown) > _LARGEST_SHEET:
        screen.say(f"the sheet shows the first {_LARGEST_SHEET} of {len(shown)} pictures")
    return True
