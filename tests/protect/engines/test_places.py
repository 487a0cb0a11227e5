"""Pictures at URLs."""

from pathlib import Path

import pytest

from protect.command.engines import places
from tests.protect.engines.runs import random_picture


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
