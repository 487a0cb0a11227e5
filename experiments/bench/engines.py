"""Pictures per second of the engines of `protect`, and what Ray costs beside plain processes.

`python -m experiments.bench.engines` prints a Markdown table. The pictures are random and of one size; each
engine makes all of them anew. "to the first" is the time until the first picture is there: processes start,
libraries and models load. The rate is that of the others, so that it holds for long runs; with several
workers it needs many pictures to be steady. Needs an idle machine; the ratio of two rows is what to quote.

    --pictures 64 --side 512      how many, and their sides
    --method mist-textural --model builtin --steps 20
    --engines serial local1 local2 ray1 ray2
    --device auto
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch

from imaging.batch.discover import Plan, plan
from imaging.io import Picture, write
from protect.command import batch
from protect.command.batch import Record
from protect.command.engines.worker import Order
from protect.command.session import recipe_for
from protect.methods import create
from protect.surrogate import choose_for, load_for

COLUMNS = ("engine", "workers", "to the first s", "pictures per second", "seconds per picture")
ENGINES = ("serial", "local1", "local2", "ray1", "ray2")


def records_of(engine: str, work: Plan, order: Order) -> Iterator[Record]:
    """Run one engine, such as "local2", over a plan."""
    if engine == "serial":
        method = order.recipe.method

        @cache
        def models():
            return [load_for(method, choice, device=order.device) for choice in order.members]

        return batch.run(work, order.recipe, models)
    name, workers = engine.rstrip("0123456789"), int(engine.lstrip("abcdefghijklmnopqrstuvwxyz"))
    if name == "local":
        from protect.command.engines import local

        return local.run(work, order=order, workers=workers)
    from protect.command.engines import cluster

    return cluster.run(work, order=order, workers=workers)


def timed(records: Iterator[Record]) -> tuple[float, float]:
    """Return the seconds to the first record, and the seconds for each of the others."""
    started, times = time.perf_counter(), []
    for record in records:
        if record.status != "done":
            raise RuntimeError(f"{record.input} was {record.status}: {record.error}")
        times.append(time.perf_counter())
    return times[0] - started, (times[-1] - times[0]) / (len(times) - 1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--method", default="mist-textural")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), metavar="ENGINE")
    given = parser.parse_args(arguments)
    if given.pictures < 2:
        parser.error("--pictures must be at least 2")
    method = create(given.method, steps=given.steps)
    # A method with a network of its own takes no model.
    surrogates = choose_for(method, "auto" if method.origin is not None else given.model)
    recipe = recipe_for(given.method, method, surrogates, mask=None, seed=0, precision="auto")
    order = Order(recipe, surrogates.members, given.device, folder=os.getcwd())
    each: dict[str, float] = {}
    print(f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        for index in range(given.pictures):
            generator = torch.Generator().manual_seed(index)
            pixels = torch.randint(0, 256, (1, 3, given.side, given.side), generator=generator)
            write(Picture(pixels.to(torch.uint8)), Path(folder) / f"{index}.png")
        for engine in given.engines:
            work = plan([folder], out=f"{folder}/{engine}/")
            first, each[engine] = timed(records_of(engine, work, order))
            workers = engine.lstrip("abcdefghijklmnopqrstuvwxyz") or "1"
            name = engine.rstrip("0123456789")
            print(
                f"| {name} | {workers} | {first:.2f} | {1 / each[engine]:.3f} | {each[engine]:.3f} |",
                flush=True,
            )
    for workers in ("1", "2"):
        local, ray = each.get(f"local{workers}"), each.get(f"ray{workers}")
        if local and ray:
            print(
                f"\nRay against processes, {workers} each: {ray - local:+.3f} s per picture,"
                f" {ray / local:.2f} times as long"
            )


if __name__ == "__main__":
    main()
