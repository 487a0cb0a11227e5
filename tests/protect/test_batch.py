"""Many files in one run: skipping, failing alone, atomic output and honest records."""

import errno
import math
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from imaging.batch import saving
from imaging.batch.discover import plan
from imaging.batch.runner import explain
from imaging.io import Picture, read
from protect.command.batch import Recipe, Record, run
from protect.command.saving import VerificationError, save
from protect.methods.mist import Mist
from protect.promise import promise

RECIPE = Recipe("mist", Mist(steps=2), "pixel-world", promise("mist", "pixel-world"), precision="float32")
Runner = Callable[..., list[Record]]


@pytest.fixture
def protect(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run the batch layer in an empty folder; the model must be asked for at most once per picture."""
    monkeypatch.chdir(tmp_path)

    def protect(*inputs: str, recipe: Recipe = RECIPE, out: str | None = None, **options) -> list[Record]:
        return list(run(plan(inputs, out=out), recipe, lambda: world, **options))

    return protect


def no_model():
    raise AssertionError("the model was loaded although nothing needed it")


def leftovers(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.rglob("*") if ".part" in path.name or path.name.startswith(".")
    )


def png(width: int, height: int, rows: bytes | None = None) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = rows if rows is not None else b"".join(b"\0" + bytes(3 * width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_a_record_tells_what_is_in_the_file(protect: Runner, draw) -> None:
    draw("a.png")
    (record,) = protect("a.png")
    original, written = read("a.png"), read("a.protected.png")
    change = (written.integers.int() - original.integers.int()).abs().max().item()
    assert (record.status, record.error, record.output) == ("done", None, "a.protected.png")
    assert (record.method, record.model, record.eps, record.steps, record.seed) == (
        "mist",
        "pixel-world",
        8,
        2,
        0,
    )
    assert record.linf == pytest.approx(change, abs=1e-3)
    assert 0 < record.linf <= 8
    assert record.psnr is not None
    assert 30 < record.psnr < 60
    assert record.survival is not None
    assert record.survival["file"] == 1
    assert set(record.survival) == {"file", "jpeg75", "half_size", "blur"}
    assert record.seconds > 0
    assert record.peak_memory_mb is not None
    assert record.peak_memory_mb > 1
    assert "editing" in record.against
    assert "not shown" in record.not_against


def test_a_second_run_skips_what_is_done_and_loads_no_model(protect: Runner, draw) -> None:
    draw("a.png")
    protect("a.png")
    before = Path("a.protected.png").read_bytes()
    (record,) = list(run(plan(["a.png"]), RECIPE, no_model))
    assert (record.status, record.output) == ("skipped", "a.protected.png")
    assert Path("a.protected.png").read_bytes() == before


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif", ".gif"])
def test_a_result_in_any_format_that_has_room_for_the_mark_is_skipped(
    protect: Runner, draw, suffix: str
) -> None:
    draw("a.png", 48, 48)
    assert [record.status for record in protect("a.png", out=f"b{suffix}")] == ["done"]
    assert [record.status for record in protect("a.png", out=f"b{suffix}")] == ["skipped"]


def test_a_result_without_room_for_a_mark_is_not_taken_for_done(protect: Runner, draw) -> None:
    draw("a.png")
    assert [record.status for record in protect("a.png", out="b.bmp")] == ["done"]
    (record,) = protect("a.png", out="b.bmp")
    assert record.error == "b.bmp exists and BMP cannot tell what it was made from; --overwrite replaces it"


@pytest.mark.parametrize("what", ["input", "steps", "seed", "model", "mask"])
def test_another_input_or_setting_is_noticed_and_never_replaces_a_result_by_itself(
    protect: Runner, draw, what: str
) -> None:
    draw("a.png")
    protect("a.png")
    before = Path("a.protected.png").read_bytes()
    recipe = {
        "input": RECIPE,
        "steps": replace(RECIPE, method=Mist(steps=3)),
        "seed": replace(RECIPE, seed=1),
        "model": replace(RECIPE, model="other"),
        "mask": replace(RECIPE, mask_digest="other"),
    }[what]
    if what == "input":
        Path("a.png").write_bytes(draw("b.png", seed=1).read_bytes())
    (record,) = protect("a.png", recipe=recipe)
    assert record.status == "failed"
    assert record.error is not None
    assert "--overwrite replaces it" in record.error
    assert Path("a.protected.png").read_bytes() == before
    (record,) = protect("a.png", recipe=recipe, overwrite=True)
    assert record.status == "done"
    assert Path("a.protected.png").read_bytes() != before


def test_the_same_seed_writes_the_same_bytes(protect: Runner, draw) -> None:
    draw("a.png")
    protect("a.png")
    before = Path("a.protected.png").read_bytes()
    protect("a.png", overwrite=True)
    assert Path("a.protected.png").read_bytes() == before


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "empty"),
    "truncated.png": (lambda: png(64, 64, os.urandom(64 * 193))[:-3000], "damaged or cut off"),
    "text.png": (lambda: b"once upon a time, " * 20, "no picture"),
    "bomb.png": (lambda: png(60_000, 60_000, b"\0" * 1000), "megapixels"),
    "no-area.png": (lambda: png(0, 0), ""),
    "one.png": (lambda: png(1, 1), "32"),
    "thin.png": (lambda: png(100_000, 1), "32"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_its_reason_and_stops_no_other(protect: Runner, draw, name: str) -> None:
    make, reason = BAD[name]
    Path(name).write_bytes(make())
    draw("good.png")
    records = {record.input: record for record in protect(name, "good.png", "gone.png")}
    assert [records[each].status for each in (name, "good.png", "gone.png")] == ["failed", "done", "failed"]
    error = records[name].error
    assert error
    assert "\n" not in error
    assert reason in error
    assert "unexpected" not in error
    assert not error.startswith("'")
    assert records["gone.png"].error == "does not exist"
    assert not Path(name).with_suffix(".protected.png").exists()


def test_a_mask_of_another_size_fails_that_picture_only(protect: Runner, draw) -> None:
    draw("a.png", 40, 48)
    draw("b.png", 48, 48)
    where = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    records = protect("a.png", "b.png", recipe=replace(RECIPE, mask=where, mask_digest="0"))
    assert [record.status for record in records] == ["failed", "done"]
    assert records[0].error is not None
    assert "48 x 48 px and the picture 48 x 40 px" in records[0].error


def test_a_loss_that_is_not_finite_fails_with_step_and_dtype(protect: Runner, draw, world) -> None:
    draw("a.png")
    with torch.no_grad():
        world.factor.fill_(torch.nan)
    (record,) = protect("a.png")
    assert record.error is not None
    assert "not finite at step 0" in record.error
    assert not Path("a.protected.png").exists()


def test_an_output_that_cannot_be_written_is_noticed_before_the_work(draw, protect: Runner) -> None:
    draw("a.png")
    for out, reason in (
        ("/proc/vernis.png", "cannot write into"),
        ("a.png/below/b.png", "cannot write into"),
    ):
        (record,) = list(run(plan(["a.png"], out=out), RECIPE, no_model))
        assert record.error is not None
        assert reason in record.error


def test_too_little_room_is_noticed_before_the_work(draw, protect: Runner, monkeypatch) -> None:
    draw("a.png")
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    (record,) = list(run(plan(["a.png"]), RECIPE, no_model))
    assert record.error is not None
    assert "is full: 0.0 MB free" in record.error


def test_a_disk_that_fills_up_while_writing_leaves_no_partial_file(
    protect: Runner, draw, monkeypatch, tmp_path
) -> None:
    draw("a.png")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        (record,) = protect("a.png")
    assert record.error is not None
    assert "No space left on device" in record.error
    assert not Path("a.protected.png").exists()
    assert leftovers(tmp_path) == []
    assert [record.status for record in protect("a.png")] == ["done"]


def test_an_interruption_leaves_whole_files_only(protect: Runner, draw, tmp_path) -> None:
    for name in ("a.png", "b.png"):
        draw(name)

    def interrupt(job, share: float) -> None:
        if job.input.name == "b.png" and share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        protect("a.png", "b.png", progress=interrupt)
    assert read("a.protected.png").frames == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.protected.png", "b.png"]


def test_an_unexpected_error_is_recorded_with_its_type_and_handed_on(protect: Runner, draw, world) -> None:
    draw("a.png")
    draw("b.png")
    seen: list[Exception] = []
    world.factor.data = torch.zeros(3, 3, 3)
    records = protect("a.png", "b.png", failed=seen.append)
    assert [record.status for record in records] == ["failed", "failed"]
    assert records[0].error is not None
    assert records[0].error.startswith("RuntimeError: ")
    assert records[0].error.endswith("(unexpected; --traceback shows where)")
    assert [type(error) for error in seen] == [RuntimeError, RuntimeError]


def test_a_lossy_result_reports_what_survived_and_that_it_left_the_bound(protect: Runner, draw) -> None:
    draw("a.png", 64, 64)
    (record,) = protect("a.png", out="b.jpg")
    assert record.status == "done"
    assert record.survival is not None
    assert record.linf is not None
    assert 0.5 < record.survival["file"] < 1.2
    assert record.linf > 8
    assert any("JPG changes pixels by itself" in note for note in record.notes)


def test_a_lossless_file_that_breaks_the_bound_is_not_kept(draw, tmp_path: Path) -> None:
    original = read(draw("a.png"))
    wrong = replace(original, integers=255 - original.integers)
    with pytest.raises(VerificationError, match="it was not kept"):
        save(original, wrong, tmp_path / "b.png", eps=8 / 255)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    before = draw("b.png", seed=1).read_bytes()
    with pytest.raises(VerificationError, match="it was not kept"):
        save(original, wrong, tmp_path / "b.png", eps=8 / 255, overwrite=True)
    assert (tmp_path / "b.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_frames_that_a_format_takes_for_one_replace_no_earlier_result(draw, tmp_path: Path) -> None:
    before = draw("near.avif", 64, 96).read_bytes()
    integers = torch.full((3, 3, 64, 96), 100, dtype=torch.uint8)
    integers[1, 0, 0, 0], integers[2, 0, 0, 0] = 101, 102
    near = Picture(integers, durations=(100, 100, 100))
    with pytest.raises(ValueError, match="the written picture has 1 x 96 x 64 frames"):
        save(near, near, tmp_path / "near.avif", eps=8 / 255, overwrite=True)
    assert (tmp_path / "near.avif").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["near.avif"]


def test_frames_are_counted_and_animations_stay_animations(protect: Runner, draw) -> None:
    draw("a.webp", frames=3)
    (record,) = protect("a.webp")
    assert record.frames == 3
    assert read("a.protected.png").durations == (100, 100, 100)


def test_inputs_are_never_touched(protect: Runner, draw) -> None:
    path = draw("a.png")
    path.chmod(0o444)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    protect("a.png")
    protect("a.png", overwrite=True)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_progress_names_the_job_and_ends_at_one(protect: Runner, draw) -> None:
    draw("a.png")
    seen = []
    protect("a.png", progress=lambda job, share: seen.append((job.input.name, share)))
    assert seen[-1] == ("a.png", 1.0)


def test_errors_of_the_machine_are_said_in_words() -> None:
    assert explain(torch.OutOfMemoryError("CUDA out of memory. Tried …")).startswith(
        "the GPU's memory is full"
    )
    assert explain(MemoryError()) == "this computer's memory is full"
    assert explain(OSError(errno.EACCES, "Permission denied", "a.png")) == "a.png: Permission denied"
    assert explain(ValueError("two\n lines")) == "two lines"


def test_peak_memory_is_counted_from_its_own_beginning() -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the high-water mark cannot be set back on this system")
    # in a process of its own: in this one, other tests' libraries may keep the allocator from giving back
    code = (
        "import torch; from imaging.batch.memory import PeakMemory; cpu = torch.device('cpu');"
        "big = torch.ones(100_000_000 // 4); print(PeakMemory(cpu).megabytes());"
        "del big; print(PeakMemory(cpu).megabytes())"
    )
    root = Path(__file__).parents[2]
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    first, second = map(float, finished.stdout.split())
    assert second < first - 50
    assert math.isfinite(second)
