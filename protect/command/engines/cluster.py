"""A Ray cluster, of one computer or of many: pictures go through Ray Data to actors that hold the models.

The one module that knows Ray. Its usage statistics, dashboard, progress bars and logs are off.
"""

import logging
import os
import pickle
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn, cast

from imaging.batch.discover import Plan
from imaging.batch.runner import Finished, explain
from protect.command import batch
from protect.command.batch import FileProgress, Record, record_of
from protect.command.engines.places import Errand, Errands, deliver, staged
from protect.command.engines.worker import Order, Reply, Worker, portable

_RETRIES = 2
"""How often a picture is begun again whose worker died."""
_SECONDS_TO_ANSWER = 5.0


def check_installed() -> None:
    """Raise ValueError with the command that helps if Ray is not installed."""
    # Both are read when Ray is imported or a cluster started. Its C++ side writes to the terminal by itself.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ValueError("--engine ray needs Ray; run: pip install 'vernis[ray]'") from error


def run(
    plan: Plan | Errands,
    *,
    order: Order,
    workers: int | None = None,
    address: str | None = None,
    progress: FileProgress | None = None,
    failed: Callable[[Exception], object] | None = None,
) -> Iterator[Record]:
    """Protect every picture of a plan on a cluster and yield the records as they are finished.

    See `batch.run` for what is skipped and what is never replaced. A picture whose worker died is begun
    again, twice at most, on any node that has room; a picture that is broken is not. Outputs are whole or not
    there.

    Args:
        plan: from `imaging.batch.discover.plan` or `places.plan`; every node has to reach its places.
        order: what each worker is told; "auto" is a GPU each if the cluster has any.
        workers: how many actors; by default one for each GPU, or else one for each node.
        address: of a running cluster, "auto" for the one of this computer; None starts one and ends it again.
        progress: not called: a worker says nothing before its picture is finished.
        failed: called with the exception behind a failed record, which has its traceback as a note.

    Raises:
        ValueError: Ray is not installed, no cluster answers, or it lacks the device.
        Exception: what loading the models raised in a worker.
    """
    yield from batch.run(Plan(problems=plan.problems), order.recipe, _no_models)
    errands = [Errand(str(job.input), str(job.output)) for job in plan.jobs]
    if not errands:
        return
    check_installed()
    with _connected(address, workers):
        held: list[Errand] = []
        for errand, reply in _passed(errands, order, workers, patient=False):
            if reply.record is None:
                held.append(errand)
            else:
                yield _told(reply, reply.record, failed)
        for _, reply in _passed(held, order, workers, patient=True):
            assert reply.record is not None
            yield _told(reply, reply.record, failed)


class Maker:
    """An actor: it loads the models once and makes one picture after the other."""

    def __init__(self, order: bytes, tally: Any) -> None:
        """Take a pickled order, and the actor that counts how often each picture was begun."""
        self._worker, self._tally = Worker(pickle.loads(order)), tally

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the picture of a row and return its place with a pickled reply, or error that ends the run."""
        import ray

        errand, patient = pickle.loads(row["errand"])
        # Ray begins it again and again; so the worker that comes after the last one that may die gives up.
        if ray.get(self._tally.begun.remote(row["place"])) > 1 + _RETRIES:
            reason = f"its worker died {1 + _RETRIES} times; it may need more memory than there is"
            made = Reply(_failure(errand, reason, self._worker.order))
        else:
            made = self._made(errand, patient)
        return {"place": row["place"], "reply": pickle.dumps(made)}

    def _made(self, errand: Errand, patient: bool) -> Reply | Exception:
        order = self._worker.order
        try:
            with staged(errand) as job:
                try:
                    reply = self._worker.make(job, patient=patient)
                except Exception as error:  # it comes of loading the models
                    return portable(error)
                record = reply.record
                if record is None:
                    return reply
                if record.status == "done":
                    deliver(job, errand, overwrite=order.overwrite)
                names = {str(job.output): errand.output, str(job.input): errand.input}
                return reply._replace(record=_renamed(record, errand, names))
        except Exception as error:  # the places of this picture are at fault, in whatever way
            return Reply(_failure(errand, explain(error), order), portable(error))


class Tally:
    """An actor that counts how often each picture was begun."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begun(self, place: int) -> int:
        """Note that the picture at a place in the plan is begun, and return how often it was by now."""
        self._begun[place] += 1
        return self._begun[place]


def _renamed(record: Record, errand: Errand, names: dict[str, str]) -> Record:
    """A record that names what was asked for where it named files that were staged for it."""
    error = record.error
    for staged_name, name in names.items():
        error = error and error.replace(staged_name, name)
    return replace(record, input=errand.input, output=record.output and errand.output, error=error)


def _failure(errand: Errand, reason: str, order: Order) -> Record:
    return record_of(Finished(errand.input, None, "failed", reason, 0.0), order.recipe)


def _told(reply: Reply, record: Record, failed: Callable[[Exception], object] | None) -> Record:
    if reply.cause is not None and failed is not None:
        failed(reply.cause)
    return record


def _passed(
    errands: Sequence[Errand], order: Order, workers: int | None, *, patient: bool
) -> Iterator[tuple[Errand, Reply]]:
    """Each errand with its reply, as it comes."""
    if not errands:
        return
    import ray.data

    share = _share(order, workers)
    if share.gpus:  # Ray shows each actor its own GPU alone
        order = replace(order, device="cuda")
    rows = [
        {"place": place, "errand": pickle.dumps((errand, patient))} for place, errand in enumerate(errands)
    ]
    tally = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tally).remote()
    # A block each, so that each is retried and reported alone; and none waits behind another at a worker.
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast(Any, Maker),
        fn_constructor_args=(pickle.dumps(order), tally),
        compute=ray.data.ActorPoolStrategy(
            size=min(share.workers, len(rows)), max_tasks_in_flight_per_actor=1
        ),
        num_cpus=share.cpus,
        num_gpus=share.gpus,
    )
    missing = dict(enumerate(errands))
    for batch_of_rows in made.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
        for row in cast(Any, batch_of_rows).to_pylist():
            said = pickle.loads(row["reply"])
            if isinstance(said, Exception):
                raise said
            # Ray may make a result again that a lost node had; it has been told of.
            if (errand := missing.pop(row["place"], None)) is not None:
                yield errand, said
    for errand in missing.values():
        yield errand, Reply(_failure(errand, "the cluster lost it and gave no reason", order))


class _Share(NamedTuple):
    workers: int
    cpus: int | None = None
    """Of each worker."""
    gpus: int | None = None


def _share(order: Order, workers: int | None) -> _Share:
    """How many workers there are, and what of the cluster each of them takes."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if order.device.startswith("cuda") and not gpus:
        raise ValueError(f"--device {order.device}: the cluster has no GPU")
    if gpus and (order.device == "auto" or order.device.startswith("cuda")):
        return _Share(workers or gpus, gpus=1)
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1] or [1]
    count = workers or len(cores)
    # As many cores each as leave room for all; Ray gives an actor as many threads.
    fitting = (each for each in range(max(cores), 1, -1) if sum(core // each for core in cores) >= count)
    return _Share(count, cpus=next(fitting, 1))


@contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[None]:
    """A connection to a cluster, quiet, for as long as the block runs."""
    import ray
    from ray.data import DataContext

    _check_answers(address)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    cores = max(os.cpu_count() or 1, workers or 1)
    own: dict[str, Any] = {"address": "local", "num_cpus": cores, "include_dashboard": False}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        with _muted():
            ray.init(**(own if address is None else {"address": address}), **quiet)
    except (ConnectionError, ValueError) as error:
        raise _unreachable(address, error) from error
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = context.enable_operator_progress_bars = False
        context.print_on_execution_start = context.enable_auto_log_stats = False
        context.max_errored_blocks = -1  # a picture that kills its workers stops no other
        context.execution_no_progress_timeout_s = -1  # one picture may take hours
        yield
    finally:
        ray.shutdown()


@contextmanager
def _muted() -> Iterator[None]:
    """Let nothing reach standard error, on which Ray's C++ side says how little it is going to log."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_answers(address: str | None) -> None:
    """Ray itself tries for a minute and tells of it at length."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str | None, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return ValueError(f"--address {address}: no Ray cluster answers there ({reason})")


def _no_models() -> NoReturn:
    raise AssertionError("problems of a plan need no model")
