"""Odd names, odd places, odd settings of the computer: the commands do their work and lose nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imaging.io import Picture, read, write
from protect.methods.mist import Mist
from protect.picture import protect_image
from purify import Jpeg, purify_image

ROOT = Path(__file__).parents[1]
NAMES = (
    "two words.png",
    'it\'s "quoted".png',
    "🎨 sketch 👩‍🎨.png",
    "صورة شخصية.png",
    "‮gnp.exe.png",
    "line\nbreak.png",
    "--method.png",
    "-rf.png",
    "a;b&c|d$e`f.png",
    "%2e%2e%2f.png",
    "[ab]*?.png",
    "CON.png",
    "Ünïcödé ﬁn ①.png",
    "é" * 100 + ".png",
)


def picture(seed: int = 0, side: int = 64) -> Picture:
    generator = torch.Generator().manual_seed(seed)
    return Picture(torch.randint(60, 190, (1, 3, side, side), dtype=torch.uint8, generator=generator))


def run(command: str, *words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    settings = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    words = (sys.executable, "-m", command, *words)
    return subprocess.run(words, cwd=folder, env=settings, capture_output=True, timeout=200, check=False)


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A folder of pictures with names that break scripts, one of them no text at all."""
    folder = tmp_path / 'odd folder "ü" 🖼'
    folder.mkdir()
    for number, name in enumerate(NAMES):
        write(picture(number), folder / name)
    if sys.platform == "linux":
        (folder / NAMES[0]).rename(os.fsdecode(os.fsencode(folder) + b"/not\xfftext.png"))
    return folder


@pytest.mark.parametrize("language", ["C", "tr_TR.UTF-8"])
def test_names_of_every_kind_are_done_and_told_of_in_any_language(hostile, tmp_path, language):
    settings = {"LC_ALL": language, "LANG": language, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    options = (
        "--method",
        "instant",
        "--out",
        str(tmp_path / "out"),
        "--report",
        str(tmp_path / "report.json"),
    )
    done = run("protect", str(hostile), *options, folder=tmp_path, **settings)

    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert len(list((tmp_path / "out").iterdir())) == len(NAMES)
    assert all(record["status"] == "done" for record in json.loads((tmp_path / "report.json").read_text()))
    assert b"Traceback" not in done.stderr


def test_a_name_that_looks_like_a_flag_is_a_name_behind_two_dashes(hostile, tmp_path):
    done = run("purify", "--method", "jpeg", "--", "-rf.png", "--method.png", folder=hostile)

    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert (hostile / "-rf.purified.png").exists()
    assert (hostile / "--method.purified.png").exists()


@pytest.mark.parametrize("year", [1970, 2107])
def test_clocks_and_times_of_files_do_not_matter(tmp_path, year):
    source = tmp_path / "old.png"
    write(picture(), source)
    os.utime(source, (0, 0) if year == 1970 else (2**32 - 1, 2**32 - 1))

    for _ in range(2):
        done = run("protect", "old.png", "--method", "instant", folder=tmp_path, TZ="Pacific/Apia")
        assert done.returncode == 0
    assert b"1 skipped" in done.stdout


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    if os.geteuid() == 0:
        folder = Path("/proc/sys")  # which not even root writes to
    else:
        folder = tmp_path / "shut"
        folder.mkdir(mode=0o500)
    write(picture(), tmp_path / "a.png")
    done = run("protect", "a.png", "--method", "instant", "--out", f"{folder}/", folder=tmp_path)

    assert done.returncode == 1
    assert b"cannot write into" in done.stderr
    assert b"Traceback" not in done.stderr


def test_short_memory_is_met_by_smaller_tiles_and_said(protected_in_little_memory):
    original, protected = protected_in_little_memory

    assert any("memory was short: done in parts of 128 px" in note for note in protected.notes)
    change = (protected.integers.int() - original.integers.int()).abs()
    assert 0 < change.max() <= 8
    assert (change[..., :128, :128] > 0).any()
    assert (change[..., 192:, 192:] > 0).any()


@pytest.fixture
def protected_in_little_memory() -> tuple[Picture, Picture]:
    from diffusion.gaussian import GaussianDenoiser
    from diffusion.schedule import NoiseSchedule

    class Little(GaussianDenoiser):
        """A model in a computer that holds no more than 200 pixels a side."""

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            if max(images.shape[-2:]) > 200:
                raise torch.OutOfMemoryError("out of memory")
            return super().encode(images)

    model = Little(torch.zeros(3, 8, 8), 0.25, NoiseSchedule.linear())
    model.comfortable = 512
    original = picture(side=256)
    return original, protect_image(original, Mist(steps=2, semantic_weight=0.0), model, precision="float32")


def test_purifying_in_short_memory_is_met_alike(monkeypatch):
    class Little(Jpeg):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if max(images.shape[-2:]) > 300:
                raise MemoryError
            return super().forward(images)

    purified = purify_image(picture(side=600), Little(75))

    assert any("parts of 256 px instead of 1024" in note for note in purified.notes)


def test_weights_that_run_code_are_refused_unrun(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps(Evil()))
    write(picture(), tmp_path / "a.png")
    for name in ("evil.safetensors", "evil.ckpt"):
        done = run("protect", "a.png", "--model", name, folder=tmp_path)
        assert done.returncode in (1, 2)
        assert len(done.stderr.decode().strip().splitlines()) == 1
        assert not (tmp_path / "ran").exists()
        assert not (tmp_path / "a.protected.png").exists()


def test_results_of_an_earlier_power_cut_do_not_stop_the_next_run(tmp_path):
    """A cut leaves hidden parts at most, which are not taken for results."""
    write(picture(), tmp_path / "a.png")
    (tmp_path / ".0123456789abcdef.part").write_bytes(b"half")
    done = run("protect", ".", "--method", "instant", folder=tmp_path)

    assert done.returncode == 0
    assert read(tmp_path / "a.protected.png").integers.shape == (1, 3, 64, 64)
