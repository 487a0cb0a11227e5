"""What one worker of an engine does: it holds the models and makes one picture at a time.

It takes the way of the serial command for each, so the results are the same bytes.
"""

import os
import pickle
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from diffusion.choice import Choice
from diffusion.model import DiffusionModel
from imaging.batch.discover import Job, Plan
from protect.command.batch import FileProgress, Recipe, Record, run
from protect.surrogate import load_for


@dataclass(frozen=True)
class Order:
    """What all workers of a run are told; it can be pickled."""

    recipe: Recipe
    members: tuple[Choice, ...]
    """The surrogates, to be loaded by each worker."""
    device: str = "auto"
    offline: bool = False
    overwrite: bool = False
    folder: str = "."
    """Where relative names begin."""


class Reply(NamedTuple):
    """What became of one picture."""

    record: Record | None
    """None if another run is making it."""
    cause: Exception | None = None
    """What is behind a failure, with its traceback as a note."""


class Worker:
    """The models of an order, loaded for the first picture that needs them."""

    def __init__(self, order: Order, *, device: str | None = None, threads: int | None = None) -> None:
        """Take an order.

        Args:
            order: what to do.
            device: where, if not as the order says.
            threads: of the processor; torch's choice by default.
        """
        self.order = order
        self._device = device or order.device
        if threads is not None:
            torch.set_num_threads(threads)
        with suppress(OSError):  # another computer may lack the folder, and then no name is relative to it
            os.chdir(order.folder)

    def make(self, job: Job, *, patient: bool, progress: FileProgress | None = None) -> Reply:
        """Make one picture as `batch.run` does; what is wrong with the picture is in the reply.

        Args:
            job: input and output.
            patient: wait if another run is making it.
            progress: called with the job and the share of it that is done.

        Raises what loading the models raises: without them there is nothing to do for any picture.
        """
        causes: list[Exception] = []
        records = run(
            Plan([job]),
            self.order.recipe,
            lambda: self._models,
            overwrite=self.order.overwrite,
            progress=progress,
            failed=causes.append,
            patient=patient,
        )
        return Reply(next(iter(list(records)), None), portable(causes[0]) if causes else None)

    @cached_property
    def _models(self) -> Sequence[DiffusionModel]:
        order = self.order
        return [
            load_for(
                order.recipe.method,
                choice,
                device=self._device,
                precision=order.recipe.precision,
                offline=order.offline,
            )
            for choice in order.members
        ]


def portable(error: Exception) -> Exception:
    """Return an error that can be sent to another process, with its traceback as a note."""
    trace = "".join(traceback.format_exception(error)).rstrip()
    try:
        sent = pickle.loads(pickle.dumps(error))
    except Exception:  # an error of any library, which may hold anything and be built in any way
        sent = None
    if type(sent) is not type(error):
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(trace)
    return sent


def here() -> str:
    """Return the folder in which relative names begin, for an order."""
    return str(Path.cwd())
