"""Ways to run one command on several processors: the processes of one computer, or a Ray cluster.

Each engine takes a plan and yields the records that `protect.command.batch.run` would, as pictures finish.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protect.command.batch import Record
    from protect.command.engines.worker import Order

Engine = Callable[..., Iterator["Record"]]
"""`engine(plan, progress=…, failed=…)`, as the arguments of `batch.run`."""


def choose(name: str, order: "Order", *, workers: int | None, address: str | None) -> Engine | None:
    """Return the engine of a name, or None for the serial one, which needs none.

    Args:
        name: serial, local or ray.
        order: what each worker is told.
        workers: how many; None is one for each device.
        address: of a Ray cluster; None starts one on this computer.

    Raises ValueError for a method that takes all pictures together, options of another engine, or Ray where
    it is not installed.
    """
    from protect.collective import CollectiveMethod

    if address is not None and name != "ray":
        raise ValueError("--address is of a Ray cluster; it goes with --engine ray")
    if name == "serial":
        if workers is not None:
            raise ValueError("--workers goes with --engine local or ray")
        return None
    if isinstance(order.recipe.method, CollectiveMethod):
        raise ValueError(
            f"--engine {name} gives each picture to a worker of its own, and {order.recipe.name} takes all"
            " together; leave --engine out"
        )
    more: dict[str, Any] = {"order": order, "workers": workers}
    if name == "local":
        from protect.command.engines import local

        return partial(local.run, **more)
    from protect.command.engines import cluster

    cluster.check_installed()
    return partial(cluster.run, **more, address=address)
