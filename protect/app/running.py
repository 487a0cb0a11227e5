"""Work beside the page: done in a thread, told of as it goes on, stopped within one step."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Generic, TypeVar

from imaging.batch.discover import Job

Record = TypeVar("Record")
Tell = Callable[[Job, float], object]

_BETWEEN_UPDATES = 0.4
_FIRST_GUESS_AFTER = 0.02
"""Share of the work before which a guess at the time left would be worth nothing."""


class Stopped(BaseException):
    """Raised within the work once nobody wants it any more; no failure of a picture, so not an Exception."""


@dataclass(frozen=True)
class Progress:
    """How far the work is."""

    finished: int
    total: int
    name: str
    """The picture in work."""
    share: float
    """Of the whole work, in [0, 1]."""
    seconds: float
    """Since the start."""

    @property
    def seconds_left(self) -> float | None:
        """A guess at the time left, None while there is too little to go by."""
        return None if self.share < _FIRST_GUESS_AFTER else self.seconds * (1 - self.share) / self.share


class Running(Generic[Record]):
    """An iterator of what is done and, in between, of how far it is."""

    def __init__(self, work: Callable[[Tell], Iterator[Record]], total: int) -> None:
        """Prepare to iterate over `work`, which is given the function to call with a job and its share."""
        self._work, self._total = work, total
        self._told: Queue[Record | BaseException | None] = Queue()
        self._stopped = threading.Event()
        self._at = ("", 0.0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def stop(self) -> None:
        """End the work at its next step. Results that are written already stay."""
        self._stopped.set()

    def end(self) -> None:
        """Stop the work, and return when it writes nothing any more."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join()

    def __iter__(self) -> Iterator[Record | Progress]:
        """Do the work. Errors of `work` are raised here."""
        started, finished = time.monotonic(), 0
        self._thread.start()
        try:
            while True:
                try:
                    told = self._told.get(timeout=_BETWEEN_UPDATES)
                except Empty:
                    name, share = self._at
                    done = min(1.0, (finished + share) / max(self._total, 1))
                    yield Progress(finished, self._total, name, done, time.monotonic() - started)
                    continue
                if told is None:
                    return
                if isinstance(told, BaseException):
                    raise told
                finished += 1
                yield told
        finally:  # also where the reader has gone away
            self.end()

    def _run(self) -> None:
        try:
            for record in self._work(self._tell):
                self._at = ("", 0.0)
                self._told.put(record)
        except Stopped:
            pass
        except BaseException as error:
            self._told.put(error)
        self._told.put(None)

    def _tell(self, job: Job, share: float) -> None:
        if self._stopped.is_set():
            raise Stopped
        self._at = (job.input.name, share)
