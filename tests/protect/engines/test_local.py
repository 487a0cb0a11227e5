"""Several processors, the same bytes: skipping, failing alone, workers that die, runs that are cut off."""

import json
import multiprocessing
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imaging.batch.discover import plan
from imaging.batch.lock import locked
from imaging.io import Picture, write
from protect.command.batch import Recipe, Record, run
from protect.command.engines import local
from protect.command.engines.worker import portable
from protect.methods.antidreambooth import ASPL
from protect.methods.instant import Instant
from protect.promise import promise
from protect.stand_in import StandIn
from tests.protect.engines.runs import NAMES, Result, awaited, fates, order_of, results, with_lives


def through_local(method: Instant, **more) -> list[Record]:
    return list(local.run(plan(["art"], out="safe"), order=order_of(method), workers=2, **more))


@pytest.mark.parametrize("mask", [(), ("--mask", "mask.png")], ids=["whole", "masked"])
def test_processes_write_the_bytes_and_the_report_of_the_serial_command(
    folder: Path, mask: tuple[str, ...]
) -> None:
    white = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    white[..., 32:] = 255
    write(Picture(white), "mask.png")
    serial = Result("art", *mask, "--out", "safe", "--report", "serial.json", "--sheet", "serial.png")
    Path("safe").rename("serial")
    options = ("--engine", "local", "--workers", "2", "--report", "local.json", "--sheet", "local.png")
    several = Result("art", *mask, "--out", "safe", *options)
    assert several.code == serial.code == 1
    assert several.err == serial.err != ""
    assert several.out.splitlines()[-3:] == serial.out.splitlines()[-3:]
    assert results("safe") == results("serial")
    assert Path("local.png").read_bytes() == Path("serial.png").read_bytes()
    reports = [json.loads(Path(f"{name}.json").read_text()) for name in ("serial", "local")]
    for record in [*reports[0], *reports[1]]:
        del record["seconds"], record["peak_memory_mb"]
    assert reports[0] == reports[1]


def test_done_ones_are_skipped_and_others_never_replaced(folder: Path) -> None:
    several = ("art", "--engine", "local", "--workers", "1", "--out", "safe")
    assert Result(*several).code == 1
    before = results("safe")
    Path("safe/b.protected.png").unlink()
    assert "1 done, 3 skipped, 1 failed" in Result(*several).out
    assert results("safe") == before
    assert Result(*several, "--eps", "4").err.count("--overwrite replaces it") == 4
    assert results("safe") == before
    assert Result(*several, "--eps", "4", "--overwrite").code == 1
    assert not set(results("safe").values()) & set(before.values())


@pytest.mark.slow
def test_steps_of_ascent_are_the_same_bytes_too(folder: Path) -> None:
    ascent = ("art", "--method", "mist-textural", "--model", "builtin", "--steps", "2")
    assert Result(*ascent, "--out", "serial").code == 1
    assert Result(*ascent, "--engine", "local", "--workers", "2", "--out", "safe").code == 1
    assert results("safe") == results("serial")


def test_a_killed_worker_is_replaced_and_its_picture_done(folder: Path, deadly) -> None:
    method = with_lives(deadly, folder, 1)
    records = through_local(method)
    assert fates(records) == dict.fromkeys([*NAMES, "black.png"], "done") | {"text.png": "failed"}
    assert list(Path("lives").iterdir()) == []
    list(run(plan(["art"], out="serial"), order_of(method).recipe, StandIn))
    assert results("safe") == results("serial")


def test_a_picture_that_kills_every_worker_fails_alone(folder: Path, deadly) -> None:
    records = through_local(with_lives(deadly, folder, 5))
    expected = dict.fromkeys(NAMES, "done") | {"text.png": "failed", "black.png": "failed"}
    assert fates(records) == expected
    (error,) = [record.error for record in records if record.input.endswith("black.png")]
    assert error == (
        "its worker died 2 times, the last one killed by SIGKILL; it may need more memory than there is"
    )
    assert len(list(Path("lives").iterdir())) == 3
    assert not Path("safe/black.protected.png").exists()


def test_killing_every_worker_from_outside_loses_nothing(folder: Path) -> None:
    killed = []

    def kill(job, share: float) -> None:
        if not killed:
            for child in multiprocessing.active_children():
                killed.append(child.pid)
                child.kill()

    records = through_local(Instant(), progress=kill)
    assert len(killed) == 2
    assert {record.status for record in records if not record.input.endswith("text.png")} <= {
        "done",
        "skipped",  # written before its worker could say so
    }
    assert set(results("safe")) == {name.replace(".", ".protected.") for name in NAMES}


def test_an_abandoned_run_ends_its_workers_and_leaves_whole_files_only(folder: Path, deadly) -> None:
    write(Picture(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), "art/black.png")
    records = local.run(plan(["art"], out="safe"), order=order_of(deadly.Slow()), workers=2)
    for _ in (*NAMES, "text.png"):
        next(records)
    before = time.monotonic()
    records.close()
    assert time.monotonic() - before < 30
    assert multiprocessing.active_children() == []
    assert set(results("safe")) == {name.replace(".", ".protected.") for name in NAMES}


def test_a_worker_that_does_not_end_in_time_leaves_nothing_half_written(
    folder: Path, deadly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_PATIENCE", 0.0)
    write(Picture(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), "art/black.png")
    records = local.run(plan(["art"], out="safe"), order=order_of(deadly.Stubborn()), workers=2)
    for _ in (*NAMES, "text.png"):
        next(records)
    awaited(lambda: list(Path("safe").glob(".*.part")))
    records.close()
    assert multiprocessing.active_children() == []
    assert [name for name in results("safe") if name.endswith(".part")] == []


def test_what_another_run_is_making_comes_last_and_is_waited_for(folder: Path) -> None:
    other = locked(Path("safe/a.protected.png"))
    other.__enter__()
    records = local.run(plan(["art"], out="safe"), order=order_of(Instant()), workers=2)
    first = [next(records) for _ in range(4)]
    assert "a.png" not in fates(first)
    threading.Timer(0.2, other.__exit__, (None, None, None)).start()
    assert fates(list(records)) == {"a.png": "done"}


def test_two_runs_over_one_set_are_one_after_the_other(folder: Path, world) -> None:
    method = ASPL(steps=2, rounds=1, lora=False, prior_images=0, train_steps=1)
    recipe = Recipe("aspl", method, "pixel-world", promise("aspl", "pixel-world"), precision="float32")
    pictures = plan([f"art/{name}" for name in NAMES])
    first = run(pictures, recipe, lambda: world)
    next(first)
    seen: list[Record] = []
    second = threading.Thread(
        target=lambda: seen.extend(run(replace(pictures, jobs=pictures.jobs[::-1]), recipe, lambda: world))
    )
    second.start()
    time.sleep(1)
    assert seen == []
    assert [record.status for record in first] == ["done"] * 3
    second.join()
    assert [record.status for record in seen] == ["skipped"] * 4


def test_errors_cross_processes_with_their_place_even_those_that_cannot_be_pickled() -> None:
    class Local(ValueError):
        pass

    for error, kind in ((ValueError("one"), ValueError), (Local("two"), RuntimeError)):
        try:
            raise error
        except ValueError as caught:
            sent = portable(caught)
        assert type(sent) is kind
        assert str(error) in str(sent)
        assert "test_local.py" in sent.__notes__[0]
