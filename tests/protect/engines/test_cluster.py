"""Runs through a Ray cluster of two nodes."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imaging.batch.discover import plan
from imaging.io import Picture, read, write
from protect.methods.instant import Instant
from tests.protect.engines.runs import (
    NAMES,
    Result,
    command,
    fates,
    order_of,
    random_picture,
    results,
    with_lives,
)

_absent = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
# Ray copies its own context field by field, the deprecated ones too.
_own_fault = pytest.mark.filterwarnings("ignore:::ray[.]data[.]context")

# Idle, a run through a cluster takes 8 seconds; beside other work it may take a minute.
_patient = pytest.mark.timeout(900)


def needs_ray(test: Callable) -> Callable:
    """Skip a test without Ray, give it time, and forgive Ray what it does to itself."""
    return _absent(_patient(_own_fault(test)))


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


@pytest.fixture
def through_ray(cluster, folder: Path) -> Callable[..., Result]:
    """Run the command on the cluster of two nodes."""
    return lambda *arguments: Result(*arguments, "--engine", "ray", "--address", cluster.address)


RAY_MISTAKES: dict[str, tuple[list[str], str]] = {
    "nobody there": (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1: no Ray cluster answers there"),
    "no address": (["--address", "nonsense"], "--address nonsense: no Ray cluster answers there"),
    "url of no kind": (["nowhere://a"], "nowhere://a cannot be reached: Protocol not known: nowhere"),
    "sheet": (["memory://a", "--sheet", "s.png"], "--sheet shows files of this computer"),
}


@needs_ray
@pytest.mark.parametrize("mistake", RAY_MISTAKES)
def test_a_mistake_about_a_cluster_is_one_line(folder: Path, mistake: str) -> None:
    arguments, message = RAY_MISTAKES[mistake]
    result = Result("art", "--engine", "ray", *arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert message in result.err


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
