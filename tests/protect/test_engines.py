"""Several processors, the same bytes: skipping, failing alone, workers that die, runs that are cut off."""

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from diffusion.choice import Choice
from imaging.batch.discover import plan
from imaging.batch.lock import locked
from imaging.io import Picture, read, write
from protect.cli import app
from protect.command.batch import Recipe, Record, run
from protect.command.engines import local, places
from protect.command.engines.worker import Order, portable
from protect.methods.antidreambooth import ASPL
from protect.methods.instant import Instant
from protect.promise import promise
from protect.stand_in import StandIn

ROOT = Path(__file__).parents[2]
DEADLY = '''
"""Methods that end or stop the process that runs them, in a module that workers can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from protect.methods.instant import Instant


@dataclass(frozen=True)
class Deadly(Instant):
    """Kill the process at a black picture, once for each file in a folder."""

    lives: str = ""

    def protect(self, images, *arguments, **options):
        for life in Path(self.lives).iterdir() if images.max() == 0 else ():
            life.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().protect(images, *arguments, **options)


@dataclass(frozen=True)
class Slow(Instant):
    """Take very long at a black picture."""

    def protect(self, images, *arguments, **options):
        time.sleep(300 if images.max() == 0 else 0)
        return super().protect(images, *arguments, **options)
'''
NAMES = ("a.png", "b.png", "c.png", "d.png")
INSTANT = ("--method", "instant", "--device", "cpu", "--precision", "float32")

_absent = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
# Ray copies its own context field by field, the deprecated ones too.
_own_fault = pytest.mark.filterwarnings("ignore:::ray[.]data[.]context")


# Idle, a run through a cluster takes 8 seconds; beside other work it may take a minute.
_patient = pytest.mark.timeout(900)


def needs_ray(test: Callable) -> Callable:
    """Skip a test without Ray, give it time, and forgive Ray what it does to itself."""
    return _absent(_patient(_own_fault(test)))


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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with "art" of four pictures and one that is none."""
    monkeypatch.chdir(tmp_path)
    Path("art").mkdir()
    for seed, name in enumerate(NAMES):
        random_picture(Path("art", name), seed)
    Path("art/text.png").write_text("not a picture at all, but long enough to look at " * 3)
    return tmp_path


@pytest.fixture(scope="module")
def deadly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type]:
    """A module of methods that go wrong, where this process and those it starts find it."""
    place = tmp_path_factory.mktemp("deadly")
    (place / "deadly.py").write_text(DEADLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        patch.setenv("PYTHONPATH", os.pathsep.join((str(place), str(ROOT))))
        import deadly

        yield deadly


@pytest.fixture(scope="module")
def cluster(deadly) -> Iterator:
    """A Ray cluster of two nodes on this computer, each with one processor."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


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


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "protect", *INSTANT, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def awaited(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


LONG = ("--method", "mist-textural", "--model", "builtin", "--steps", "100000", "--engine", "local")


def test_ctrl_c_says_how_many_are_done_and_leaves_no_file_of_its_own(folder: Path) -> None:
    with command("art", *LONG, "--workers", "2", "--out", "safe", "--report", "r.json") as process:
        awaited(lambda: Path("safe").exists() and len(list(Path("safe").glob(".*.lock"))) == 2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted with 0 of 5 done; the same command goes on from here\n"
    assert results("safe") == {}
    assert json.loads(Path("r.json").read_text()) == []


def test_a_killed_command_is_gone_on_with(folder: Path) -> None:
    for seed in range(40):
        random_picture(Path("art", f"{seed}.png"), seed)
    options = ("art", "--engine", "local", "--workers", "2", "--out", "safe")
    with command(*options) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    again = Result(*options)
    assert again.err.count("\n") == 1
    assert "0 done" not in again.out
    assert "0 skipped" not in again.out
    assert Result("art", "--out", "serial").code == 1
    assert results("safe") == results("serial")


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
        assert "test_engines.py" in sent.__notes__[0]


def test_a_manifest_has_a_row_for_each_picture_and_the_columns_of_a_record(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert Result("art", "gone.png", "--out", "safe", "--manifest", "deep/m.parquet").code == 1
    table = parquet.read_table("deep/m.parquet")
    assert table.column_names == [each.name for each in fields(Record)]
    rows = table.to_pylist(maps_as_pydicts="strict")
    inputs = ["gone.png", *(f"art/{name}" for name in NAMES), "art/text.png"]
    assert [row["input"] for row in rows] == inputs
    assert [row["status"] for row in rows] == ["failed", *["done"] * 4, "failed"]
    assert rows[0]["error"] == "does not exist"
    assert rows[1]["linf"] == rows[1]["eps"] == 8
    assert set(rows[1]["survival"]) == {"file", "jpeg75", "half_size", "blur"}
    Path("nothing").mkdir()
    assert Result("nothing", "--manifest", "n.parquet").code == 1
    assert parquet.read_table("n.parquet").schema == table.schema
    assert [path.name for path in Path("deep").iterdir()] == ["m.parquet"]


MISTAKES: dict[str, tuple[list[str], str]] = {
    "engine": (["--engine", "rya"], "--engine"),
    "workers": (["--engine", "local", "--workers", "0"], "--workers"),
    "workers of none": (["--workers", "2"], "--workers goes with --engine local or ray"),
    "address of none": (["--engine", "local", "--address", "auto"], "it goes with --engine ray"),
    "set": (["--method", "fsmg", "--engine", "local"], "fsmg takes all together; leave --engine out"),
    "device": (["--engine", "local", "--device", "gpu"], "device 'gpu' cannot be used"),
    "url": (["memory://art/a.png"], "memory://art/a.png is a URL; --engine ray reads and writes those"),
    "manifest": (["--manifest", "art/a.png"], "--manifest art/a.png would replace an input"),
}
RAY_MISTAKES: dict[str, tuple[list[str], str]] = {
    "nobody there": (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1: no Ray cluster answers there"),
    "no address": (["--address", "nonsense"], "--address nonsense: no Ray cluster answers there"),
    "url of no kind": (["nowhere://a"], "nowhere://a cannot be reached: Protocol not known: nowhere"),
    "sheet": (["memory://a", "--sheet", "s.png"], "--sheet shows files of this computer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(folder: Path, mistake: str) -> None:
    arguments, message = MISTAKES[mistake]
    result = Result("art", *arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err
    assert len(list(Path("art").iterdir())) == 5


def test_ray_that_is_not_installed_is_one_line_with_the_command_that_helps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = Result("art", "--engine", "ray")
    assert (result.code, result.out) == (2, "")
    assert result.err == "protect: --engine ray needs Ray; run: pip install 'vernis[ray]'\n"


@needs_ray
@pytest.mark.parametrize("mistake", RAY_MISTAKES)
def test_a_mistake_about_a_cluster_is_one_line(folder: Path, mistake: str) -> None:
    arguments, message = RAY_MISTAKES[mistake]
    result = Result("art", "--engine", "ray", *arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert message in result.err


@pytest.fixture
def memory() -> Iterator:
    """fsspec's files in memory, none at first."""
    files = pytest.importorskip("fsspec").filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def test_urls_stand_for_pictures_as_paths_do(memory, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    random_picture(Path("x.png"), 0)
    for name in ("a.png", "deep/b.JPG", ".hidden.png", "notes.txt", "a.protected.png"):
        memory.pipe_file(f"/art/{name}", b"-")

    def errands(*inputs: str, **options) -> dict[str, str]:
        made = places.plan(inputs, **options)
        return {errand.input: errand.output for errand in made.jobs}

    a, b = "memory:///art/a.png", "memory:///art/deep/b.JPG"
    beside = "memory:///art/a.protected.png"
    assert errands("memory://art") == errands("memory://art/*.png") == {a: beside}
    assert errands("memory://art", recursive=True, out="memory://safe/") == {
        a: "memory://safe/a.protected.png",
        b: "memory://safe/deep/b.protected.png",
    }
    assert errands("memory://art", "x.png", out="safe") == {
        a: "safe/a.protected.png",
        "x.png": "safe/x.protected.png",
    }
    assert errands("x.png", out="memory://one.webp") == {"x.png": "memory:///one.webp"}
    assert errands((tmp_path / "x.png").as_uri()) == {
        str(tmp_path / "x.png"): str(tmp_path / "x.protected.png")
    }
    (problem,) = places.plan(["memory://art/gone.png"]).problems
    assert (problem.input, problem.reason) == ("memory://art/gone.png", "does not exist")
    assert places.plan(["memory://art"]).left_out == [beside]
    with pytest.raises(ValueError, match="would replace an input"):
        errands("memory://art/a.png", out="memory:///art/a.png")
    memory.pipe_file("/art/x.png", b"-")
    with pytest.raises(ValueError, match="would both be written to memory://safe/x"):
        errands("memory://art", "x.png", out="memory://safe")


def test_a_result_reaches_its_url_whole_and_replaces_nothing_by_itself(memory, monkeypatch) -> None:
    memory.pipe_file("/a.png", b"in")
    errand = places.Errand("memory:///a.png", "memory:///new/b.png")
    with places.staged(errand) as job:
        assert (job.input.name, job.input.read_bytes(), job.output.exists()) == ("a.png", b"in", False)
        job.output.write_bytes(b"out")
        places.deliver(job, errand, overwrite=False)
        places.deliver(job, errand, overwrite=False)  # the same again does no harm
        job.output.write_bytes(b"other")
        with pytest.raises(FileExistsError, match=r"memory:///new/b\.png came there meanwhile"):
            places.deliver(job, errand, overwrite=False)
        assert places.fetched(errand.output) == b"out"
        places.deliver(job, errand, overwrite=True)
    assert not job.input.exists()
    with places.staged(errand) as job:
        assert job.output.read_bytes() == b"other", "what is there is fetched, for its mark"

    def cut_off(*_: object, **__: object) -> None:
        raise OSError("the line is cut")

    monkeypatch.setattr(type(memory), "mv", cut_off)
    with pytest.raises(OSError, match="the line is cut"):
        places.put(b"half", errand.output)
    assert memory.find("/new") == ["/new/b.png"]
    assert places.fetched(errand.output) == b"other"


@pytest.fixture
def through_ray(cluster, folder: Path) -> Callable[..., Result]:
    """Run the command on the cluster of two nodes."""
    return lambda *arguments: Result(*arguments, "--engine", "ray", "--address", cluster.address)


@needs_ray
def test_a_cluster_writes_the_bytes_of_the_serial_command(
    through_ray: Callable[..., Result], folder: Path
) -> None:
    assert Result("art", "--out", "serial").code == 1
    made = through_ray("art", "--out", "safe", "--manifest", "m.parquet")
    assert made.code == 1
    assert made.err == (
        "failed   art/text.png: is no picture that can be read; expected PNG, JPEG, WebP, TIFF, AVIF, GIF, "
        "BMP or HEIC\n"
    )
    assert "4 done, 0 skipped, 1 failed" in made.out
    assert results("safe") == results("serial")
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table("m.parquet").to_pylist()
    assert [row["status"] for row in rows] == [*["done"] * 4, "failed"]


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["file", "local"])
def test_a_cluster_reads_and_writes_urls_with_a_mask(
    through_ray: Callable[..., Result], folder: Path, scheme: str
) -> None:
    white = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    white[..., 32:] = 255
    write(Picture(white), "mask.png")
    masked = ("--mask", "mask.png")
    assert Result("art", *masked, "--out", "serial").code == 1
    # "local" is "file" by another name, under which it is not taken for a path.
    urls = (f"{scheme}://{folder}/art", *masked, "--out", f"{scheme}://{folder}/{scheme}")
    made = through_ray(*urls)
    assert (made.code, made.err.count("\n")) == (1, 1), made.err
    assert results(scheme) == results("serial")
    assert "0 done, 4 skipped, 1 failed" in through_ray(*urls).out
    other = through_ray(*urls, "--eps", "4")
    assert other.err.count("/a.protected.png exists and was not made from this input") == 1, other.err
    assert "vernis-" not in other.err
    assert results(scheme) == results("serial")


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(("lives", "fate"), [(2, "done"), (9, "failed")])
def test_a_killed_actor_loses_nothing_and_a_picture_that_kills_each_fails_alone(
    cluster, folder: Path, deadly, lives: int, fate: str
) -> None:
    from protect.command.engines import cluster as engine

    method = with_lives(deadly, folder, lives)
    records = list(
        engine.run(plan(["art"], out="safe"), order=order_of(method), workers=2, address=cluster.address)
    )
    assert fates(records) == dict.fromkeys(NAMES, "done") | {"text.png": "failed", "black.png": fate}
    (black,) = [record for record in records if record.input.endswith("black.png")]
    assert black.error == {
        "done": None,
        "failed": "its worker died 3 times; it may need more memory than there is",
    }.get(fate)
    assert len(list(Path("lives").iterdir())) == max(0, lives - 3)
    assert not [name for name in results("safe") if name.endswith(".part")]


@needs_ray
@pytest.mark.slow
def test_a_node_that_goes_away_in_mid_run_loses_nothing(cluster, folder: Path, deadly) -> None:
    from protect.command.engines import cluster as engine

    for seed in range(20):
        random_picture(Path("art", f"{seed}.png"), seed)
    node = cluster.add_node(num_cpus=2)
    records = engine.run(
        plan(["art"], out="safe"), order=order_of(Instant()), workers=4, address=cluster.address
    )
    first = next(records)
    cluster.remove_node(node, allow_graceful=False)
    statuses = fates([first, *records])
    assert statuses.pop("text.png") == "failed"
    assert len(statuses) == 24
    assert set(statuses.values()) <= {"done", "skipped"}
    assert len([name for name in results("safe") if not name.startswith(".")]) == 24


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_its_own_is_quiet_and_gone_afterwards(folder: Path) -> None:
    with command("art", "--engine", "ray", "--workers", "2", "--out", "safe", "--quiet") as process:
        out, errors = process.communicate(timeout=200)
    assert (process.returncode, out) == (1, "")
    assert errors.startswith("failed   art/text.png: ")
    assert errors.count("\n") == 1
    assert read("safe/a.protected.png").width == 64


@needs_ray
def test_workers_share_the_processors_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from protect.command.engines import cluster as engine

    def shared(*nodes: dict[str, float], workers: int | None = None, device: str = "auto") -> tuple:
        alive = [{"Alive": True, "Resources": node} for node in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 64}}])
        return tuple(engine._share(replace(order_of(Instant()), device=device), workers))

    assert shared({"CPU": 8}) == (1, 8, None)
    assert shared({"CPU": 8}, {"CPU": 2}, {}) == (2, 4, None)
    assert shared({"CPU": 3}, {"CPU": 3}, workers=4) == (4, 1, None)
    assert shared({"CPU": 1}, workers=4) == (4, 1, None)
    assert shared({"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}) == (3, None, 1)
    assert shared({"CPU": 8, "GPU": 2}, workers=1, device="cuda") == (1, None, 1)
    assert shared({"CPU": 8, "GPU": 2}, device="cpu") == (1, 8, None)
    with pytest.raises(ValueError, match="--device cuda: the cluster has no GPU"):
        shared({"CPU": 8}, device="cuda")
