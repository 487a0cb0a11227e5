"""Which files a run of `detect` takes, and where a heatmap of each would go.

`imaging.batch.discover` plans a result beside every input and refuses two inputs of one name, as `a.png` and
`a.jpg`; here there are no such results, and both are to be answered. Only their heatmaps must be two files.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from imaging.batch.discover import Found, Job, Plan, Problem, check_collisions, is_output, resolve

LABEL = "heatmap"
"""What stands before the suffix of heatmaps, which are no inputs."""


def pictures_of(
    inputs: Sequence[str], *, recursive: bool = False, heatmaps: str | os.PathLike[str] | None = None
) -> Plan:
    """Resolve files, folders and glob patterns into jobs.

    A folder stands for the pictures in it, by suffix and without hidden files; with `recursive` also for
    those below. A file that is reached twice counts once. Heatmaps of earlier runs are left out, unless one
    is named itself. What is missing or empty becomes a problem and stops nothing else.

    Args:
        inputs: paths and patterns.
        recursive: descend into folders.
        heatmaps: the folder that receives heatmaps, where they are wanted.

    Raises:
        PlanError: two heatmaps would be one file, or one would replace an input.
    """
    plan, found = Plan(), {}
    for text in dict.fromkeys(inputs):
        matches, reason = resolve(text, recursive)
        if not matches:
            plan.problems.append(Problem(text, reason or "holds no pictures"))
        for each in matches:
            if not each.named and is_output(each.path, LABEL):
                plan.left_out.append(each.path)
            else:
                found.setdefault(os.path.realpath(each.path), each)
    plan.jobs.extend(Job(each.path, _heatmap(each, Path(heatmaps or "."))) for each in found.values())
    if heatmaps is not None:
        check_collisions(plan.jobs, flag="--heatmap")
    return plan


def _heatmap(found: Found, folder: Path) -> Path:
    beside = found.path.relative_to(found.root)
    return folder / beside.with_name(f"{beside.name}.{LABEL}.png")
