"""What tests of engines share: pictures, the command, here and in its own process, and results."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from typer.testing import CliRunner

from diffusion.choice import Choice
from imaging.io import Picture, write
from protect.cli import app
from protect.command.batch import Recipe, Record
from protect.command.engines.worker import Order
from protect.methods.instant import Instant
from protect.promise import promise

ROOT = Path(__file__).parents[3]
NAMES = ("a.png", "b.png", "c.png", "d.png")
INSTANT = ("--method", "instant", "--device", "cpu", "--precision", "float32")


class Result:
    """Exit code and streams of one command."""

    def __init__(self, *arguments: str) -> None:
        result = CliRunner().invoke(app, [*INSTANT, *arguments])
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        assert "Traceback" not in self.out + self.err
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception


def random_picture(path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    write(Picture(torch.randint(0, 256, (1, 3, 64, 64), generator=generator).to(torch.uint8)), path)


def with_lives(deadly, folder: Path, count: int) -> Instant:
    """A method that kills `count` workers at the black picture, which is drawn."""
    (folder / "lives").mkdir()
    for life in range(count):
        (folder / "lives" / str(life)).touch()
    write(Picture(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), folder / "art" / "black.png")
    return deadly.Deadly(lives=str(folder / "lives"))


def order_of(method: Instant) -> Order:
    recipe = Recipe("instant", method, "builtin", promise("instant", "builtin"), precision="float32")
    return Order(recipe, (Choice("builtin"),), device="cpu", folder=os.getcwd())


def results(place: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(place).iterdir()}


def fates(records: list[Record]) -> dict[str, str]:
    return {Path(record.input).name: record.status for record in records}


def _heeding_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "protect", *INSTANT, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_heeding_interrupts,  # what runs in the background is told to ignore them
    )


def awaited(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
