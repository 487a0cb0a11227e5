"""A method's fields as options, with words read from the class, so that no front end keeps a second list."""

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import textwrap
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from protect.method import ProtectionMethod

_LEVELS = frozenset({"eps", "step_size", "rms"})
"""Fields that are fractions of the full range in Python, and levels of a byte for people."""

_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class OptionError(ValueError):
    """An option that the method does not have, or a value that the option cannot take."""


@dataclass(frozen=True)
class Option:
    """One field of a method, as people meet it."""

    name: str
    """The field's name in Python."""
    kind: Any
    """Its annotation: bool, int, float, str, a Literal, a tuple of one of these, or any of them or None."""
    default: Any
    """Its value when nobody says otherwise, in Python's units."""
    doc: str
    """The docstring under the field."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def unit(self) -> float:
        """What a typed number is divided by to become the field's value."""
        return 255.0 if self.name in _LEVELS else 1.0

    @property
    def expectation(self) -> str:
        """What a person may type, in words."""
        return _expectation(self.kind)

    def parse(self, text: str) -> Any:
        """Turn what a person typed into the field's value.

        Raises OptionError, naming the flag, what it expects and what came.
        """
        try:
            value = _parse(text.strip() if self.kind is not str else text, self.kind)
        except ValueError as error:
            raise OptionError(f"{self.flag} expects {self.expectation}; got {text!r}") from error
        return value / self.unit if self.unit != 1 and value is not None else value

    def show(self, value: Any) -> str:
        """Write a value of the field the way a person would type it."""
        if self.unit != 1 and value is not None:
            value = value * self.unit
        if isinstance(value, tuple):
            return ",".join(map(str, value)) or "none"
        return f"{value:g}" if isinstance(value, float) else str(value)


def options(method: "ProtectionMethod") -> dict[str, Option]:
    """Return the options of a method, by flag; the values it was created with are the defaults."""
    cls = type(method)
    kinds, docs = get_type_hints(cls), _field_docs(cls)
    found = [
        Option(f.name, kinds[f.name], getattr(method, f.name), docs.get(f.name, ""))
        for f in dataclasses.fields(cls)
        if f.init
    ]
    return {option.flag: option for option in found}


def split_arguments(
    arguments: Sequence[str], available: dict[str, Option], *, also: Iterable[str] = ()
) -> tuple[list[str], dict[str, Any]]:
    """Separate `--flag value` and `--flag=value` of a method from the other arguments.

    Args:
        arguments: what was typed, flags of the method and inputs in any order.
        available: the method's options, see `options`.
        also: flags that exist elsewhere, to be proposed for a misspelt one.

    Returns:
        The other arguments in their order, and field values by field name.

    Raises:
        OptionError: for a flag that is unknown, given twice or without a value, or a value that does not fit.
    """
    others: list[str] = []
    values: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            others.append(argument)
            continue
        flag, equals, text = argument.partition("=")
        option = available.get(flag) or _negated(flag, available)
        if option is None:
            raise OptionError(_unknown(flag, [*available, *also]))
        if option.name in values:
            raise OptionError(f"{option.flag} is given twice")
        if option.kind is bool and not equals:
            text = "yes" if flag == option.flag else "no"
        elif not equals and (text := next(rest, None)) is None:
            raise OptionError(f"{flag} expects {option.expectation} after it")
        values[option.name] = option.parse(text)
    return others, values


def _negated(flag: str, available: dict[str, Option]) -> Option | None:
    option = available.get("--" + flag.removeprefix("--no-")) if flag.startswith("--no-") else None
    return option if option is not None and option.kind is bool else None


def _unknown(flag: str, known: list[str]) -> str:
    near = difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"this method has {', '.join(known)}"
    return f"no such option: {flag}; {hint}"


def _parse(text: str, kind: Any) -> Any:
    """Raises ValueError for text that says no `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _word(text, {str(choice): choice for choice in arguments})
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not types.NoneType]
        return None if text.lower() == "none" else _parse(text, inner[0])
    if origin is tuple:
        parts = [] if text.lower() == "none" else text.split(",")
        return tuple(_parse(part.strip(), arguments[0]) for part in parts)
    if kind is bool:
        return _word(text.lower(), _WORDS)
    if kind is float:
        return _finite(float(text))
    return kind(text)


def _word(text: str, words: dict[str, Any]) -> Any:
    if text not in words:
        raise ValueError(text)
    return words[text]


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(number)
    return number


def _expectation(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_expectation(a) for a in arguments if a is not types.NoneType) + " or none"
    if origin is tuple:
        return f"{_expectation(arguments[0])}, or several with commas between them"
    return {bool: "yes or no", int: "a whole number", float: "a number", str: "a text"}.get(kind, str(kind))


def _field_docs(cls: type) -> dict[str, str]:
    """The string under each field, nearest class first."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs.update(_own_field_docs(base))
    return docs


@functools.cache
def _own_field_docs(cls: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # a class made without a source file has no words to show
        return {}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, below in zip(definition.body, definition.body[1:], strict=False):
        match statement, below:
            case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text)))):
                docs[name] = inspect.cleandoc(text)
    return docs
