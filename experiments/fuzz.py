"""Damaged picture files by the thousand through every command: what was tried, survived and lost.

    python -m experiments.fuzz --count 10000

A file is a small picture of some format with one or two mutations. It may be done or refused in one line; it
is lost if the input changes, anything is left behind, a result cannot be read, or an error is not one that is
meant for people.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageCms
from torch.nn import functional as F

import detect.batch
import protect.command.batch
import purify.batch
from detect.builtin import load_detector
from diffusion.gaussian import GaussianDenoiser
from diffusion.schedule import NoiseSchedule
from imaging.batch.discover import Job, Plan
from imaging.io import Picture, read, write
from protect.methods.mist import Mist
from protect.promise import promise
from purify import Jpeg

Mutation = Callable[[bytearray, random.Random], None]
Run = Callable[[Plan], Any]


def flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 3, 20))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def cut_off(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def overwrite_with_noise(data: bytearray, chance: random.Random) -> None:
    start, length = chance.randrange(len(data)), chance.randrange(1, 64)
    data[start : start + length] = chance.randbytes(length)


def fill_with_extremes(data: bytearray, chance: random.Random) -> None:
    start, length = chance.randrange(min(len(data), 256)), chance.choice((1, 2, 4))
    data[start : start + length] = bytes([chance.choice((0, 0x7F, 0x80, 0xFF))]) * length


def remove_a_piece(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.randrange(1, 64)]


def repeat_a_piece(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    data[start:start] = data[start : start + chance.randrange(1, 512)]


def append_noise(data: bytearray, chance: random.Random) -> None:
    data += chance.randbytes(chance.randrange(1, 512))


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    cut_off,
    overwrite_with_noise,
    fill_with_extremes,
    remove_a_piece,
    repeat_a_piece,
    append_noise,
)


def originals(folder: Path) -> dict[str, bytes]:
    """Small files of every format, still and moving, with and without transparency and metadata."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(3, 3, 6, 7, generator=generator)
    pixels = F.interpolate(smooth, (40, 48), mode="bilinear")
    integers = (pixels * 255).to(torch.uint8)
    alpha = torch.randint(0, 2, (3, 1, 40, 48), generator=generator).to(torch.uint8) * 255
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
    still = Picture(integers[:1], xmp=xmp, dpi=(72.0, 72.0), text=(("Comment", "a comment"),))
    for suffix in ("png", "jpg", "webp", "tif", "avif", "gif", "bmp"):
        write(still, folder / f"still.{suffix}")
    for suffix in ("png", "webp", "tif", "gif"):
        write(Picture(integers, alpha, durations=(50, 50, 50)), folder / f"moving.{suffix}")
    write(Picture((pixels[:1] * 65535).to(torch.uint16)), folder / "deep.png")
    told = Picture(
        integers[:1], exif=_exif(), icc=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    for suffix in ("png", "jpg", "webp", "tif"):
        write(told, folder / f"told.{suffix}")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _exif() -> bytes:
    tags = Image.Exif()
    tags[0x010E], tags[0x0112], tags[0x013B] = "a description", 1, "somebody"
    return tags.tobytes()


def protecting() -> Run:
    """One step towards a texture, for which a model has to encode only; it takes large pictures whole."""
    model = GaussianDenoiser(torch.zeros(3, 8, 8), 0.25, NoiseSchedule.linear())
    model.comfortable = 2048  # a damaged header may announce a large picture
    method = Mist(steps=1, semantic_weight=0.0)
    recipe = protect.command.batch.Recipe(
        "mist-textural", method, "world", promise("mist", "world"), precision="float32"
    )
    return lambda plan: protect.command.batch.run(plan, recipe, lambda: model)


def purifying() -> Run:
    """JPEG, which takes no model."""
    purifier, recipe = Jpeg(75), purify.batch.Recipe("jpeg", {}, None)
    return lambda plan: purify.batch.run(plan, recipe, lambda: purifier)


def detecting() -> Run:
    """The detector that ships; it writes nothing."""
    detector = load_detector("builtin")
    return lambda plan: detect.batch.run(plan, detector)


COMMANDS: dict[str, Callable[[], Run]] = {"protect": protecting, "purify": purifying, "detect": detecting}


@dataclass(frozen=True)
class Trial:
    """One damaged file through one command."""

    number: int
    name: str
    record: Any
    fault: str | None
    """Why it counts as lost; None where all is as it should be."""


def trials(files: dict[str, bytes], run: Run, folder: Path, *, count: int, seed: int) -> Sequence[Trial]:
    """Put `count` damaged files through a command, one by one, in an empty folder."""
    chance, made = random.Random(seed), []
    for number in range(count):
        name = chance.choice(sorted(files))
        data = bytearray(files[name])
        for _ in range(chance.choice((1, 1, 2))):
            if data:
                chance.choice(MUTATIONS)(data, chance)
        source, result = folder / f"{number}-{name}", folder / f"{number}.png"
        source.write_bytes(data)
        (record,) = run(Plan(jobs=[Job(source, result)]))
        made.append(Trial(number, name, record, _fault(record, source, bytes(data), result)))
        for path in folder.iterdir():
            path.unlink()
    return made


def _fault(record: Any, source: Path, data: bytes, result: Path) -> str | None:
    if source.read_bytes() != data:
        return "the input was changed"
    if not {path.name for path in source.parent.iterdir()} <= {source.name, result.name}:
        return "something was left behind"
    if record.status == "done":
        same = not result.exists() or read(result).integers.shape == read(source).integers.shape
        return None if same else "the result has another shape"
    if result.exists():
        return "a failure left a result"
    if not record.error or "\n" in record.error:
        return "a failure without one line that says why"
    return f"an unexpected error: {record.error}" if "unexpected" in record.error else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each command."""
    parser = argparse.ArgumentParser("python -m experiments.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="damaged files, shared by the commands")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    lost = 0
    print("| command | tried | done | refused in one line | lost | seconds |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        files = originals(_made(Path(name) / "originals"))
        for place, (command, make) in enumerate(COMMANDS.items()):
            count = given.count // len(COMMANDS) + (place < given.count % len(COMMANDS))
            folder, started = _made(Path(name) / command), time.monotonic()
            made = trials(files, make(), folder, count=count, seed=given.seed + place)
            statuses = Counter("lost" if trial.fault else trial.record.status for trial in made)
            lost += statuses["lost"]
            figures = (
                count,
                statuses["done"],
                statuses["failed"],
                statuses["lost"],
                time.monotonic() - started,
            )
            print(f"| {command} | " + " | ".join(f"{figure:.0f}" for figure in figures) + " |", flush=True)
            for trial in made:
                if trial.fault:
                    print(f"{command}, seed {given.seed + place}, {trial.number} {trial.name}: {trial.fault}")
    return 1 if lost else 0


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
