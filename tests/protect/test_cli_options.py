"""A method's fields as options: read from the class, parsed from text."""

from dataclasses import dataclass
from typing import Literal

import pytest

from protect.command.options import OptionError, options, split_arguments
from protect.method import ProtectionMethod
from protect.methods import METHODS, create


@dataclass(frozen=True)
class Every(ProtectionMethod):
    """A method with every kind of field."""

    count: int = 3
    """How many."""
    ratio: float | None = None
    side: Literal[1, -1] = 1
    fast: bool = False
    times: tuple[float, ...] = (0.5, 1.0)

    def objective(self, model, images, *, target, generator):
        raise NotImplementedError


AVAILABLE = options(Every())


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--count", "7"], {"count": 7}),
        (["--ratio", "0.5"], {"ratio": 0.5}),
        (["--ratio=none"], {"ratio": None}),
        (["--side", "-1"], {"side": -1}),
        (["--fast"], {"fast": True}),
        (["--no-fast"], {"fast": False}),
        (["--fast=no"], {"fast": False}),
        (["--times", "0.25, 1"], {"times": (0.25, 1.0)}),
        (["--prompt", "a painting of =--x"], {"prompt": "a painting of =--x"}),
        (["--prompt="], {"prompt": ""}),
        (["--step-size", "0.5"], {"step_size": 0.5 / 255}),
        (["--eps", "8"], {"eps": 8 / 255}),
    ],
)
def test_text_becomes_the_fields_value(arguments: list[str], values: dict) -> None:
    assert split_arguments(["a.png", *arguments, "b.png"], AVAILABLE) == (["a.png", "b.png"], values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "many"], "--count expects a whole number; got 'many'"),
        (["--ratio", "nan"], "--ratio expects a number or none; got 'nan'"),
        (["--side", "2"], "--side expects one of 1, -1; got '2'"),
        (["--times", "1,"], "--times expects a number, or several with commas between them; got '1,'"),
        (["--count"], "--count expects a whole number after it"),
        (["--count", "1", "--count=2"], "--count is given twice"),
        (["--coutn", "1"], "no such option: --coutn; did you mean --count?"),
        (["--recursve"], "no such option: --recursve; did you mean --recursive?"),
        (["--no-count"], "no such option: --no-count; did you mean --count?"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(arguments: list[str], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        split_arguments(arguments, AVAILABLE, also=["--recursive"])
    assert str(caught.value) == message


def test_words_come_from_the_nearest_class_that_has_them() -> None:
    assert AVAILABLE["--count"].doc == "How many."
    assert AVAILABLE["--steps"].doc == "Number of ascent steps."
    assert AVAILABLE["--fast"].doc == ""


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_every_method_is_documented_and_takes_back_its_own_default(name: str) -> None:
    for option in options(create(name)).values():
        assert option.doc, f"{name} {option.flag} has no docstring"
        shown = option.show(option.default)
        assert option.show(option.parse(shown)) == shown


def test_a_variant_shows_its_own_defaults() -> None:
    assert options(create("advdm-minus"))["--direction"].default == -1
    assert options(create("advdm"))["--direction"].default == 1


def test_step_and_radius_are_shown_in_levels_of_a_byte() -> None:
    assert AVAILABLE["--eps"].show(8 / 255) == "8"
    assert AVAILABLE["--step-size"].show(0.5 / 255) == "0.5"
