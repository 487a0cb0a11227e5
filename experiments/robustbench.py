"""RobustBench (Croce et al., 2021, NeurIPS Datasets, arXiv 2010.09670) through one door.

Its wheel imports `autoattack`, which is not published where wheels are; `pyautoattack`, which it depends on,
is the same with another signature. This module puts the one in the place of the other before RobustBench is
imported, and it is the only one to import it.

torchattacks' wheel carries an old `robustbench` package with its evaluation commented out. Which of the two
lands last is the installer's luck, so the files are compared with what RobustBench's own wheel recorded, and
if they are not its own, an intact copy is installed beside them.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn


class BrokenInstallError(ImportError):
    """RobustBench is not installed, or another package has overwritten its files."""


def _provide_autoattack() -> None:
    """Register `autoattack` with the original signature unless the original is installed."""
    if "autoattack" in sys.modules or importlib.util.find_spec("autoattack") is not None:
        return
    import pyautoattack
    from pyautoattack import state

    class AutoAttack(pyautoattack.AutoAttack):
        def __init__(
            self,
            model: nn.Module,
            norm: str = "Linf",
            eps: float = 0.3,
            seed: int | None = None,
            verbose: bool = True,
            attacks_to_run: list[str] | None = None,
            version: str = "standard",
            is_tf_model: bool = False,
            device: Any = "cpu",
            log_path: str | None = None,
        ) -> None:
            super().__init__(
                model,
                norm=norm,  # pyrefly: ignore
                eps=eps,
                seed=seed,
                version=version,  # pyrefly: ignore
                attacks=(attacks_to_run or None) if version == "custom" else None,  # pyrefly: ignore
                device=device,
            )

        def run_standard_evaluation(
            self,
            x_orig: torch.Tensor,
            y_orig: torch.Tensor,
            bs: int = 250,
            return_labels: bool = False,
            state_path: Path | None = None,
        ) -> Any:
            found = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=state_path)
            return found if return_labels else found[0]

    module = types.ModuleType("autoattack")
    module.AutoAttack, module.state = AutoAttack, state  # pyrefly: ignore
    sys.modules["autoattack"], sys.modules["autoattack.state"] = module, state


def _overwritten(distribution: importlib.metadata.Distribution) -> bool:
    """Whether a file of an installed package is not the one that its wheel brought."""
    for file in distribution.files or ():
        path = Path(str(distribution.locate_file(file)))
        if file.hash is None or path.suffix != ".py":
            continue
        digest = hashlib.new(file.hash.mode, path.read_bytes()).digest() if path.exists() else b""
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            return True
    return False


def _install(requirement: str, folder: Path) -> None:
    """Install one package, and nothing it depends on, into a new folder; from uv's cache if it is there."""
    uv = shutil.which("uv")
    base = (
        [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    )
    command = [*base, "--quiet", "--no-deps", "--target", str(folder), requirement]
    attempts = [[*command, "--offline"], command] if uv else [command]
    for attempt in attempts:
        done = subprocess.run(attempt, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    raise BrokenInstallError(
        f"torchattacks' wheel has overwritten robustbench and no {requirement} could be installed beside it; "
        f"run: pip install --force-reinstall --no-deps {requirement}"
    )


def _intact_copy(distribution: importlib.metadata.Distribution, prefix: Path) -> Path:
    """Return a folder in the environment at `prefix` that holds the package as published."""
    folder = prefix / "share" / "vernis" / f"robustbench-{distribution.version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            fresh = Path(scratch) / "package"
            _install(f"robustbench=={distribution.version}", fresh)
            try:
                os.rename(fresh, folder)
            except OSError:  # another process was first
                if not folder.is_dir():
                    raise
    return folder


def _robustbench() -> Any:
    """Import RobustBench, as it was published, and return its module `eval`."""
    try:
        distribution = importlib.metadata.distribution("robustbench")
    except importlib.metadata.PackageNotFoundError:
        raise BrokenInstallError("RobustBench is not installed: pip install 'vernis[robustness]'") from None
    _provide_autoattack()
    if "robustbench" not in sys.modules and _overwritten(distribution):
        sys.path.insert(0, str(_intact_copy(distribution, Path(sys.prefix))))
    from robustbench import eval as evaluation

    if not hasattr(evaluation, "benchmark"):
        raise BrokenInstallError(
            "the robustbench that is loaded is the one of torchattacks' wheel; "
            "run: pip install --force-reinstall --no-deps robustbench"
        )
    return evaluation


def load_model(
    name: str,
    *,
    model_dir: str | Path = "models",
    dataset: str = "cifar10",
    threat_model: str = "Linf",
) -> nn.Module:
    """Return a model of RobustBench's zoo, whose weights lie in `model_dir` or are fetched there.

    Raises FileNotFoundError, naming the file and the folder, when they are absent and cannot be fetched,
    and for a page of text saved in their place; ValueError for a name that the zoo does not have.
    """
    _robustbench()
    from robustbench import utils
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    known = model_dicts[BenchmarkDataset(dataset)][ThreatModel(threat_model)]
    if name not in known:
        raise ValueError(f"RobustBench has no {dataset} model {name!r} for {threat_model}")
    path = Path(model_dir) / dataset / threat_model / f"{name}.pt"
    if path.exists() and path.read_bytes()[:1] == b"<":
        raise FileNotFoundError(f"{path} is a web page, not weights: delete it and fetch them again")
    try:
        return utils.load_model(name, str(model_dir), dataset, threat_model).eval()
    except Exception as error:  # its downloader raises what the network, the host and gdown raise
        if path.exists():
            raise
        raise FileNotFoundError(
            f"the weights of {name} are absent and were not fetched: put {path.name} into {path.parent}"
        ) from error


def benchmark(
    model: nn.Module, *, eps: float, n_examples: int = 10_000, batch_size: int = 128, **options: Any
) -> tuple[float, float]:
    """Return (clean, robust) accuracy as RobustBench measures them: AutoAttack's standard version.

    Options are RobustBench's own: `dataset`, `threat_model`, `data_dir`, `device`, …

    Raises ValueError for a random classifier, which the benchmark does not admit.
    """
    probe = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        if not torch.equal(model(probe), model(probe)):
            raise ValueError(
                "RobustBench admits deterministic classifiers only, and this one is random; use "
                "attacks.evaluate, which reports averages over draws and a null row"
            )
    return _robustbench().benchmark(model, n_examples=n_examples, eps=eps, batch_size=batch_size, **options)
