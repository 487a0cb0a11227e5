"""The processes of one computer: one for each GPU, or as many as are asked for.

Each idle worker is given the next picture of one queue, through a pipe of its own: a queue that the workers
themselves read is locked for ever when one is killed while it reads.
"""

import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import NoReturn

import torch

from imaging.batch.discover import Job, Plan
from imaging.batch.runner import Finished
from imaging.whole import sweep
from protect.command import batch
from protect.command.batch import FileProgress, Record, record_of
from protect.command.engines.worker import Order, Reply, Worker, portable

_TRIES = 2
"""How often a picture is begun whose worker dies."""
_PATIENCE = 10.0
"""Seconds in which a worker that is told to end puts away what it has in hand."""


@dataclass
class _Task:
    job: Job
    patient: bool = False
    deaths: int = 0
    started: float = 0.0


def run(
    plan: Plan,
    *,
    order: Order,
    workers: int | None = None,
    progress: FileProgress | None = None,
    failed: Callable[[Exception], object] | None = None,
) -> Iterator[Record]:
    """Protect every job of a plan, several at once, and yield the records as they are finished.

    See `batch.run` for what is skipped and what is never replaced. A worker that dies, killed or out of
    memory, is replaced, and its picture begun once more; if that kills its worker too, it has failed. Outputs
    are whole or not there, whatever dies. What another run is making comes last and is waited for.

    Args:
        plan: from `imaging.batch.discover.plan`.
        order: what each worker is told; of its device, "auto" and "cuda" stand for all GPUs.
        workers: how many processes; one for each device by default. They share the processor's threads.
        progress: called with a job and the share of it that is done.
        failed: called with the exception behind a failed record, which has its traceback as a note.

    Raises what loading the models raised in a worker.
    """
    yield from batch.run(Plan(problems=plan.problems), order.recipe, _no_models)
    devices = _devices(order.device, workers)[: len(plan.jobs)]
    threads = max(1, torch.get_num_threads() // max(1, len(devices)))
    waiting = deque(_Task(job) for job in plan.jobs)
    # As bytes, because tensors that multiprocessing pickles itself are lent by this process, not copied.
    told = pickle.dumps(order)
    crew: list[_Process] = []
    try:
        for device in devices:
            crew.append(_Process(told, device, threads))  # noqa: PERF401 (one that fails leaves the others)
        while waiting or any(member.task for member in crew):
            for place, member in enumerate(crew):
                if member.task is None and waiting:
                    crew[place] = member.given(waiting.popleft())
            for member in _heard(crew):
                match member.heard():
                    case Reply(record=None), task:
                        waiting.append(_Task(task.job, patient=True, deaths=task.deaths))
                    case Reply(record=Record() as record, cause=cause), _:
                        if cause is not None and failed is not None:
                            failed(cause)
                        yield record
                    case Exception() as error, _:
                        raise error
                    case float(share), task:
                        if progress is not None:
                            progress(task.job, share)
                    case None, task if task.deaths < _TRIES:
                        waiting.appendleft(task)
                    case None, task:
                        yield _lost(task, member.end, order)
    finally:
        _dismiss(crew)


class _Process:
    """A worker's process as seen from here."""

    def __init__(self, told: bytes, device: str, threads: int) -> None:
        self._made_of = told, device, threads
        self.task: _Task | None = None
        context = get_context("spawn")  # CUDA does not survive a fork, nor do locks of other threads
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(*self._made_of, theirs), daemon=True)
        with _deaf_to_interrupts():
            self.process.start()
        theirs.close()  # so that the death of the only one who has it is the end of the pipe

    @property
    def end(self) -> str:
        """How it ended, in words."""
        code = self.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"

    def given(self, task: _Task) -> "_Process":
        """The process that has the task now: this one, or one in its place if it has died."""
        member = self
        try:
            member.connection.send((task.job, task.patient))
        except OSError:
            member = _Process(*self._made_of)
            self.dismissed()
            member.connection.send((task.job, task.patient))
        member.task = task
        task.started = time.monotonic()
        return member

    def heard(self) -> tuple[Reply | Exception | float | None, _Task]:
        """What it says and of which task; None is its death."""
        task = self.task
        assert task is not None
        try:
            said = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            self._sweep(task)
            task.deaths += 1
            said = None
        if not isinstance(said, float):
            self.task = None
        return said, task

    def dismissed(self) -> None:
        """End it, politely and then at once."""
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        if self.task is not None:
            self._sweep(self.task)
        self.connection.close()
        self.process.close()

    def _sweep(self, task: _Task) -> None:
        sweep(task.job.output.parent, self.process.pid or 0)


def _heard(crew: list[_Process]) -> list[_Process]:
    """Those at work of whom there is something to hear, after it has come."""
    at_work = [member for member in crew if member.task is not None]
    ready = wait([member.connection for member in at_work])
    return [member for member in at_work if member.connection in ready]


def _dismiss(crew: list[_Process]) -> None:
    for member in crew:
        member.process.terminate()
    for member in crew:
        member.dismissed()


def _lost(task: _Task, end: str, order: Order) -> Record:
    reason = f"its worker died {task.deaths} times, the last one {end}; it may need more memory than there is"
    seconds = round(time.monotonic() - task.started, 3)
    return record_of(Finished(str(task.job.input), None, "failed", reason, seconds), order.recipe)


def _devices(device: str, workers: int | None) -> list[str]:
    """Where each process works."""
    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    devices = [f"cuda:{index}" for index in range(count)] or [device]
    return [devices[index % len(devices)] for index in range(workers or len(devices))]


def _serve(told: bytes, device: str, threads: int, connection: Connection) -> None:
    """Make pictures until the pipe ends, which it does when the process at its other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    worker = Worker(pickle.loads(told), device=device, threads=threads)
    with suppress(EOFError, OSError):
        while True:
            job, patient = connection.recv()
            try:
                said = worker.make(
                    job, patient=patient, progress=lambda _, share: connection.send(float(share))
                )
            except Exception as error:
                said = portable(error)
            connection.send(said)


def _leave(*_: object) -> NoReturn:
    """Go through every `finally` on the way out, so that nothing half-written stays behind."""
    raise SystemExit


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal, and what happens then is for one of them to decide."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _no_models() -> NoReturn:
    raise AssertionError("problems of a plan need no model")
