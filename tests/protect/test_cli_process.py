"""The command as a process of its own: it starts at once, and a real Ctrl-C leaves whole files only."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import protect
from imaging.io import read

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_help_costs_less_than_a_second_and_imports_nothing_heavy() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import sys; from protect.cli import app; app(['--help'], standalone_mode=False);"
    code += " print(sorted({'torch', 'diffusers', 'PIL', 'numpy'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.stdout.splitlines()[-1] == "[]"
    # Processor time, because the clock also counts what else the computer is doing.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_the_module_runs_as_a_command_and_returns_the_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "protect", "a.png", "--method", "mits"]
    result = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("protect: unknown method 'mits'; did you mean 'mist'?")
    assert result.stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_leaves_whole_files_and_says_how_many(draw, tmp_path: Path, tiny_autoencoder: Path) -> None:
    draw("a.png", 32, 32)
    draw("b.png", 1500, 1500)
    # Only the pace of the progress lines differs from the console script: one after each step, to wait for.
    code = (
        "import imaging.batch.terminal as terminal, protect.cli; "
        "terminal._SECONDS_BETWEEN_LINES = -1; protect.cli.main()"
    )
    # A shell ignores the signal for what it starts in the background, and children inherit that.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {code}"
    options = [
        "--method",
        "mist-textural",
        "--model",
        str(tiny_autoencoder),
        "--steps",
        "50",
        "--device",
        "cpu",
    ]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, "a.png", "b.png", *options, "--report", "r.json"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any("b.png: " in line for line in process.stdout)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors == "interrupted with 1 of 2 done; the same command goes on from here\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.protected.png", "b.png", "r.json"]
    assert read(tmp_path / "a.protected.png").width == 32


def test_every_public_name_exists_and_every_method_is_public() -> None:
    assert sorted(protect.__all__) == sorted(set(protect.__all__))
    for name in protect.__all__:
        assert getattr(protect, name) is not None
    methods = {entry.path.partition(":")[2] for entry in protect.METHODS.values()}
    assert methods <= set(protect.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Mits'"):
        protect.Mits  # noqa: B018
