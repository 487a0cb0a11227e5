"""Arguments that begin with dashes, and texts that would steer a terminal."""

import unicodedata
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from imaging.batch import terminal


def test_files_are_no_options_whatever_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-beach.png", "--sea.png", "hill.png"):
        Path(name).touch()
    assert terminal.named(["hill.png", "-beach.png", "--sea.png"]) == [
        "hill.png",
        "./-beach.png",
        "./--sea.png",
    ]
    assert terminal.named(["--mask", "-beach.png"]) == ["--mask", "./-beach.png"]
    assert terminal.named(["--eps", "8", "--", "--eps", "a.png"]) == ["--eps", "8", "./--eps", "a.png"]
    own = ["-h", "-", "--shift", "-0.5", "--prompt", "-dark", "--method=mist"]
    assert terminal.named(own) == own
    with pytest.raises(Exception, match=r"no such file: -gone\.png; and options have two dashes"):
        terminal.named(["-gone.png"])


@pytest.mark.parametrize("arguments", [["-gone.png"], ["--many", "-gone.png", "-x"]])
def test_what_is_neither_is_one_line(capsys, arguments):
    app = typer.Typer()

    @app.command("told", cls=terminal.OneLineCommand)
    def told(inputs: terminal.Inputs = None, many: bool = False) -> None:
        raise AssertionError("it was called")

    with pytest.raises(SystemExit) as stopped:
        app(arguments)
    assert stopped.value.code == terminal.USAGE
    assert capsys.readouterr().err.count("\n") == 1


@given(st.text())
def test_nothing_that_is_printed_steers_a_terminal(text):
    shown = terminal.escaped(text)
    assert all(unicodedata.category(each) != "Cc" for each in shown if each not in "\t\n")
    assert not set(shown) & set("\u2028\u2029\u202a\u202d\u202e\u2066\u2067")
    if text.isprintable() and not set(text) & set("\u200e\u200f"):
        assert shown == text


def test_a_line_stays_a_line(capsys):
    screen = terminal.Terminal(1, quiet=False)
    screen.say("done     a\nfailed   b\x1b[31m.png")
    screen.complain("x\ny")
    out, err = capsys.readouterr()
    assert out == "done     a\\nfailed   b\\x1b[31m.png\n"
    assert err == "x\\ny\n"
