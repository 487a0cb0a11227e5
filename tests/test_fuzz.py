"""Damaged files through each command's batch layer: each fails alone, in one line, and leaves nothing."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import protect.command.batch
import purify.batch
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


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small files of every format, still and moving, with and without transparency and metadata."""
    folder = tmp_path_factory.mktemp("originals")
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(3, 3, 6, 7, generator=generator)
    pixels = torch.nn.functional.interpolate(smooth, (40, 48), mode="bilinear")
    integers = (pixels * 255).to(torch.uint8)
    alpha = torch.randint(0, 2, (3, 1, 40, 48), generator=generator).to(torch.uint8) * 255
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
    still = Picture(integers[:1], xmp=xmp, dpi=(72.0, 72.0), text=(("Comment", "a comment"),))
    for suffix in ("png", "jpg", "webp", "tif", "avif", "gif", "bmp"):
        write(still, folder / f"still.{suffix}")
    for suffix in ("png", "webp", "tif", "gif"):
        write(Picture(integers, alpha, durations=(50, 50, 50)), folder / f"moving.{suffix}")
    write(Picture((pixels[:1] * 65535).to(torch.uint16)), folder / "deep.png")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


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


def fuzz(originals: dict[str, bytes], run: Run, folder: Path, *, count: int, seed: int) -> list[Any]:
    chance, records = random.Random(seed), []
    for number in range(count):
        name = chance.choice(sorted(originals))
        data = bytearray(originals[name])
        for _ in range(chance.choice((1, 1, 2))):
            if data:
                chance.choice(MUTATIONS)(data, chance)
        source, result = folder / f"{number}-{name}", folder / f"{number}.png"
        source.write_bytes(data)
        (record,) = run(Plan(jobs=[Job(source, result)]))
        records.append(record)
        assert source.read_bytes() == data, "the input was changed"
        assert {path.name for path in folder.iterdir()} <= {source.name, result.name}, (
            "something was left behind"
        )
        if record.status == "done":
            assert read(result).integers.shape == read(source).integers.shape
        else:
            assert record.status == "failed"
            assert not result.exists()
            assert record.error, f"{source.name} failed without a reason"
            assert "\n" not in record.error
            assert "unexpected" not in record.error, f"{bytes(data)!r}"
        source.unlink()
        result.unlink(missing_ok=True)
    return records


@pytest.mark.parametrize("make", [protecting, purifying])
@pytest.mark.parametrize(("count", "seed"), [(100, 1), pytest.param(1000, 2, marks=pytest.mark.slow)])
def test_damaged_files_fail_alone_with_a_reason_and_leave_nothing_behind(
    originals: dict[str, bytes], tmp_path: Path, make: Callable[[], Run], count: int, seed: int
) -> None:
    records = fuzz(originals, make(), tmp_path, count=count, seed=seed)
    done = [record for record in records if record.status == "done"]
    assert count / 20 < len(done) < count * 19 / 20
    assert all(record.linf is not None for record in done)
    if make is protecting:
        assert max(record.linf for record in done) <= 8.001
