"""Damaged files through each command's batch layer: each fails alone, in one line, and leaves nothing."""

from pathlib import Path

import pytest

from experiments.fuzz import COMMANDS, originals, trials


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return originals(tmp_path_factory.mktemp("originals"))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("count", "seed"), [(100, 1), pytest.param(1000, 2, marks=pytest.mark.slow)])
def test_damaged_files_fail_alone_with_a_reason_and_leave_nothing_behind(
    files: dict[str, bytes], tmp_path: Path, command: str, count: int, seed: int
) -> None:
    made = trials(files, COMMANDS[command](), tmp_path, count=count, seed=seed)
    faults = [f"{trial.number} {trial.name}: {trial.fault}" for trial in made if trial.fault]
    done = [trial.record for trial in made if trial.record.status == "done"]

    assert not faults
    assert count / 20 < len(done) < count * 19 / 20
    if command == "protect":
        assert max(record.linf for record in done) <= 8.001
