"""Room for a result is made sure of before the work that makes it."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from imaging.batch.discover import Plan, PlanError


def check_writable(path: Path, *, at_least: int = 0) -> None:
    """Make sure, before any work, that a file can be made at `path` and that there is some room for it.

    Raises OSError with a sentence.
    """
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if path.is_dir():
        raise IsADirectoryError(f"the output {path} is a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise PermissionError(f"cannot write into {folder} ({error.strerror})") from error
    if free < at_least:
        raise OSError(
            f"the disk of {folder} is full: {free / 1e6:.1f} MB free, {at_least / 1e6:.1f} MB or more needed"
        )


def check_extras(plan: Plan, extras: Mapping[str, str | None]) -> None:
    """Make sure that files beside the results can be written and replace nothing: paths by flag.

    Raises imaging.batch.discover.PlanError or OSError with a sentence.
    """
    taken = {os.path.realpath(path) for job in plan.jobs for path in (job.input, job.output)}
    for flag, extra in extras.items():
        if extra is None:
            continue
        if os.path.realpath(extra) in taken:
            raise PlanError(f"{flag} {extra} would replace an input or a result")
        taken.add(os.path.realpath(extra))
        check_writable(Path(extra))
