"""What people install: the archives hold what they should, and every command starts from the wheel."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
COMMANDS = sorted(PROJECT["project"]["scripts"])
MEGABYTE = 1e6

pytestmark = pytest.mark.slow
pytest.importorskip("hatchling")


def run(*words: object, cwd: Path, timeout: int = 200) -> str:
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the source archive of a copy of the tracked files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    run(sys.executable, "-m", "hatchling", "build", "-d", out, cwd=source)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The commands of the wheel in an environment that has its dependencies and nothing else of ours."""
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    scripts = place / ("Scripts" if sys.platform == "win32" else "bin")
    run("uv", "pip", "install", "--offline", "--no-deps", "--python", place, built[0], cwd=place)
    (site,) = place.rglob("site-packages")
    # Last on the path, and its own .pth files, one of which leads to this repository, are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def test_the_wheel_holds_the_packages_with_their_weights_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES, cwd=ROOT)
    tracked = {name for name in listed.splitlines() if name and (ROOT / name).exists()}

    assert {name for name in names if ".dist-info/" not in name} == tracked
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_archives_are_small_enough_for_an_index(built):
    assert all(path.stat().st_size < 60 * MEGABYTE for path in built)


def test_the_source_archive_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as packed:
        packed.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist", cwd=source)
    (again,) = (tmp_path / "dist").iterdir()

    def contents(path: Path) -> dict[str, int]:
        return {entry.filename: entry.CRC for entry in zipfile.ZipFile(path).infolist()}

    assert contents(again) == contents(built[0])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts_from_the_wheel(installed, command, tmp_path):
    assert "Usage" in run(installed / command, "--help", cwd=tmp_path)
    assert run(installed / command, "--version", cwd=tmp_path) == f"vernis {version('vernis')}\n"


def test_the_wheel_is_what_runs_and_brings_its_models(installed, tmp_path):
    asks = "import protect, diffusion; print(protect.__file__, diffusion.__file__)"
    assert str(ROOT) not in run(installed / "python", "-c", asks, cwd=tmp_path)

    shutil.copy(ROOT / "examples" / "coffee.png", tmp_path)
    options = ["--method", "mist", "--steps", "1", "--model", "builtin"]
    run(installed / "protect", "coffee.png", *options, cwd=tmp_path)
    run(installed / "detect", "coffee.png", cwd=tmp_path)
    run(installed / "purify", "coffee.protected.png", "--method", "jpeg", cwd=tmp_path)
    assert (tmp_path / "coffee.protected.purified.png").stat().st_size > 0


def test_extras_that_commands_name_exist():
    named = {"app", "heic", "onnx", "ray", "robustness", "train", "detect"}

    assert named <= set(PROJECT["project"]["optional-dependencies"])
