"""One run at a time for each output: two processes, a dead owner, and two runs over one folder."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from imaging.batch import lock
from imaging.batch.discover import Job, Plan
from imaging.batch.lock import locked, waited_for
from imaging.batch.runner import work_through
from imaging.io import Picture, write

ROOT = Path(__file__).parents[2]
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
HOLD = """
import sys
from pathlib import Path
from imaging.batch.lock import locked
with locked(Path(sys.argv[1])) as ours:
    print(ours, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path):
    """Another process that has the output "b.png", until its input ends or it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "b.png")], **PIPES) as process:
        try:
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


def jobs(folder: Path, *names: str) -> Plan:
    for name in names:
        (folder / name).write_bytes(name.encode())
    return Plan([Job(folder / name, folder / f"{name}.out.png") for name in names])


def test_an_output_is_taken_once_and_free_again_without_a_trace(tmp_path: Path) -> None:
    output = tmp_path / "new" / "a.png"
    with locked(output) as first, locked(output) as second:
        assert (first, second) == (True, False)
        with locked(output.with_name("b.png")) as beside:
            assert beside
    with locked(output) as again:
        assert again
    assert list(output.parent.iterdir()) == []


def test_the_longest_name_that_a_file_can_have_can_be_locked(tmp_path: Path) -> None:
    with locked(tmp_path / ("a" * 251 + ".png")) as ours:
        assert ours


def test_another_process_keeps_it_until_it_ends(tmp_path: Path, other: subprocess.Popen) -> None:
    with locked(tmp_path / "b.png") as ours:
        assert not ours
    other.communicate()
    with locked(tmp_path / "b.png") as ours:
        assert ours


def test_what_a_killed_process_left_behind_locks_nothing(tmp_path: Path, other: subprocess.Popen) -> None:
    other.kill()
    other.wait()
    assert len(list(tmp_path.iterdir())) == 1
    with locked(tmp_path / "b.png") as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_are_never_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PAUSE", 0.001)
    inside, most = [], []

    def work() -> None:
        for _ in range(20):
            with waited_for(tmp_path / "a.png"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80


def test_a_run_takes_the_others_first_and_waits_for_what_another_is_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_PAUSE", 0.01)
    plan, order, marks = jobs(tmp_path, "a.png", "b.png"), [], {}

    def note(job: Job, mark: str) -> None:
        marks[job.input.name] = mark
        order.append(job.input.name)

    assert [one.status for one in work_through(plan, {}, note)] == ["done", "done"]
    order.clear()
    with locked(plan.jobs[0].output):
        hasty = [Path(one.input).name for one in work_through(plan, {}, note, patient=False)]
    assert hasty == order == ["b.png"]

    order.clear()
    other = locked(plan.jobs[0].output)
    other.__enter__()
    run = work_through(plan, {}, note)
    assert Path(next(run).input).name == "b.png"
    plan.jobs[0].output.write_bytes(marks["a.png"].encode())  # as the other would finish it
    threading.Timer(0.1, other.__exit__, (None, None, None)).start()
    assert [(Path(one.input).name, one.status) for one in run] == [("a.png", "skipped")]
    assert order == ["b.png"]


def test_an_interrupted_run_gives_back_what_it_had(tmp_path: Path) -> None:
    def interrupt(job: Job, mark: str) -> None:
        raise KeyboardInterrupt

    plan = jobs(tmp_path, "a.png")
    with pytest.raises(KeyboardInterrupt):
        list(work_through(plan, {}, interrupt))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


TWICE = """
import sys
from pathlib import Path
from imaging.batch.discover import plan
from imaging.batch.mark import marked
from imaging.batch.runner import work_through
from imaging.io import Picture, write
from imaging.io import read, write

def work(job, mark):
    write(marked(read(job.input), mark, job.output), job.output)

print("ready", flush=True)
sys.stdin.readline()
for one in work_through(plan([sys.argv[1]]), {}, work):
    print(one.status, Path(one.input).name, one.error, flush=True)
"""


def test_two_runs_over_one_folder_make_each_picture_once(tmp_path: Path) -> None:
    names = {f"{index}.png" for index in range(12)}
    for name in names:
        write(Picture(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), tmp_path / name)
    command = [sys.executable, "-c", TWICE, str(tmp_path)]
    with (
        subprocess.Popen(command, **PIPES) as one,
        subprocess.Popen(command, **PIPES) as two,
    ):
        assert [run.stdout.readline() for run in (one, two)] == ["ready\n"] * 2
        for run in (one, two):
            run.stdin.write("\n")
            run.stdin.flush()
        said = [run.communicate()[0].splitlines() for run in (one, two)]
    fates = [line.split() for lines in said for line in lines]
    assert {fate for fate, _, _ in fates} <= {"done", "skipped"}, fates
    assert sorted(name for fate, name, _ in fates if fate == "done") == sorted(names)
    assert {len(lines) for lines in said} == {12}
    assert {path.name for path in tmp_path.iterdir()} == names | {
        name.replace(".png", ".protected.png") for name in names
    }
