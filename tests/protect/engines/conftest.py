"""Folders, methods that go wrong, and URLs in memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protect.engines.runs import NAMES, ROOT, random_picture

DEADLY = '''
"""Methods that end or stop the process that runs them, in a module that workers can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from imaging.whole import whole
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


@dataclass(frozen=True)
class Stubborn(Instant):
    """Be for ever at a file of a black picture, whatever one is told."""

    def protect(self, images, *arguments, **options):
        if images.max() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with whole(Path("safe/black.protected.png")) as partial:
                partial.touch()
                time.sleep(300)
        return super().protect(images, *arguments, **options)
'''


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


@pytest.fixture
def memory() -> Iterator:
    """fsspec's files in memory, none at first."""
    files = pytest.importorskip("fsspec").filesystem("memory")
    yield files
    files.rm("/", recursive=True)
