"""The docs are true: links lead somewhere, Python runs, commands exist with the flags that are shown."""

import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from typer.main import get_command

from experiments import reference
from imaging.io import Picture, write
from protect.methods import METHODS

ROOT = Path(__file__).parents[1]
FOLDERS = ("detect", "diffusion", "experiments", "protect")
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md")),
    ]
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MARKED = re.compile(r"(?:^<!-- not run: ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
COMMANDS = {
    "protect": "protect.cli",
    "protect-app": "protect.app.cli",
    "purify": "purify.cli",
    "detect": "detect.cli",
    "unlearn": "unlearn.cli",
}
OTHERS = {"pip", "pytest", "ruff", "pyrefly", "lint-imports", "sync"}


def blocks(path: Path, *languages: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [code for language, code in BLOCK.findall(text) if language in languages]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in ("".join(found) for found in LINK.findall(text)):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{target} does not exist"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{target} has no such heading"


def run_blocks(page: Path) -> list[str]:
    """The Python of a page; of blocks that are marked as not run, what they import alone."""
    found = []
    for marked, language, code in MARKED.findall(page.read_text(encoding="utf-8")):
        if language == "python" and marked:
            imports = [
                part for part in ast.parse(code).body if isinstance(part, (ast.Import, ast.ImportFrom))
            ]
            found.append("\n".join(map(ast.unparse, imports)))
        elif language == "python":
            found.append(code)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_runs(page, tmp_path):
    """All blocks of a page run one after the other, as a reader would paste them."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    script = tmp_path / "blocks.py"
    script.write_text("\n\n".join(run_blocks(page)))
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]


def test_blocks_are_left_out_for_a_reason():
    reasons = [
        marked
        for page in PAGES
        for marked, _, _ in MARKED.findall(page.read_text(encoding="utf-8"))
        if marked
    ]

    assert set(reasons) <= {"needs weights", "takes minutes"}


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's shell blocks, as words; continued lines are one."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                while words and (words[0] in ("uv", "run") or re.fullmatch(r"[A-Z_]+=\S*", words[0])):
                    words = words[1:]
                found += [words] if words else []
    return found


def configured(settings: list[str]) -> None:
    """Let a training read its settings, and go no further."""
    from experiments.__main__ import main

    with pytest.raises(SystemExit) as stopped:
        main(["fit", *settings, "--print_config"])
    assert stopped.value.code in (0, None), settings


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_exist_with_the_flags_that_are_shown(page):
    for words in commands(page):
        if words[0] in OTHERS:
            continue
        if words[2:4] == ["experiments", "fit"]:  # its help does not tell the settings of what a recipe names
            configured(words[4:])
            continue
        flags = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
        told = help_of(words)
        missing = [flag for flag in flags if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", told)]
        assert not missing, f"{' '.join(words)}: {missing}"


PLACEHOLDERS = {
    "drawing.png": 64,
    "picture.png": 32,
    "portrait.png": 64,
    "portfolio/one.png": 64,
    "portfolio/more/two.png": 64,
    "folder/a.png": 32,
    "me/a.png": 64,
    "me/b.png": 64,
    "examples/astronaut.png": 64,
}
"""Pictures that the pages name, and the sides of those that stand for them."""
ELSEWHERE = re.compile(r"s3://|MODEL|my-detector|--engine (local|ray)|(^| )(ace|aspl)( |$)")
"""What needs a cluster, weights, or minutes; tests of their own run it."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_for_pictures_run_one_after_the_other(page, tmp_path, monkeypatch):
    for place, side in PLACEHOLDERS.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        write(Picture(torch.randint(60, 190, (1, 3, side, side), dtype=torch.uint8)), tmp_path / place)
    face = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    face[..., :32] = 255
    write(Picture(face), tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        if words[0] in ("protect", "purify", "detect") and not ELSEWHERE.search(" ".join(words)):
            command = get_command(importlib.import_module(COMMANDS[words[0]]).app)
            if "--verify" in words and not (tmp_path / "drawing.protected.png").exists():
                CliRunner().invoke(command, ["drawing.png", "--method", "instant"])
            done = CliRunner().invoke(command, words[1:])
            assert done.exit_code == 0, f"{' '.join(words)}: {done.output}"


def help_of(words: list[str]) -> str:
    """What a command says of itself, with the options of the method that it names."""
    if words[0] in COMMANDS:
        command = get_command(importlib.import_module(COMMANDS[words[0]]).app)
        asked = [["--help"]]
        if words[0] == "protect":
            method = words[words.index("--method") + 1] if "--method" in words else "mist"
            asked += [["--verify", "--help"]] if "--verify" in words else [["--method", method, "--options"]]
        runs = [CliRunner().invoke(command, each) for each in asked]
        assert all(run.exit_code == 0 for run in runs), [run.output for run in runs]
        return "--verify\n" + "\n".join(run.output for run in runs)
    assert words[:2] == ["python", "-m"], f"unknown command: {' '.join(words)}"
    if words[2:4] == ["experiments", "fit"]:
        config = ROOT / words[words.index("--config") + 1]
        assert config.exists(), config
        return " ".join(["--config", "--data.root", "--ckpt_path"])
    module = f"experiments.{words[3].replace('-', '_')}" if words[2] == "experiments" else words[2]
    parts = importlib.import_module(module)
    if not hasattr(parts, "main"):  # what takes paths alone has no flags
        return ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        if list(inspect.signature(parts.main).parameters) == ["arguments"]:
            parts.main(["--help"])
    return said.getvalue()


def test_generated_parts_are_as_the_code_says():
    for path, text in reference.pages().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"run: python -m experiments.reference ({name(path)})"
        )


def test_every_method_has_a_page():
    told = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")

    assert all(f"| `{method}` |" in told for method in METHODS)


def test_every_public_name_is_documented():
    for module in reference.MODULES:
        for public, thing in reference.public_names(importlib.import_module(module)):
            told = (thing.__doc__ or "").strip()
            assert told or not reference.described(thing), f"{module}.{public} has no docstring"
