"""`python -m experiments.reference`: write what of the docs is generated from the code.

That is `docs/api.md` whole, and the tables between the markers of `docs/models.md` and
`docs/methods/index.md`.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusion.known import KNOWN
from imaging.whole import write_whole
from protect.methods import METHODS as PROTECTIONS
from purify.methods import METHODS as PURIFIERS

DOCS = Path(__file__).parents[1] / "docs"
MODULES = (
    "protect",
    "protect.threats",
    "purify",
    "purify.text",
    "attacks",
    "attacks.adaptive",
    "attacks.adapters",
    "attacks.evaluate",
    "attacks.generative",
    "attacks.text",
    "detect",
    "distill",
    "distill.losses",
    "distill.methods",
    "unlearn",
    "diffusion.load",
    "diffusion.model",
    "diffusion.samplers",
    "diffusion.losses",
    "imaging.io",
    "imaging.transforms",
    "imaging.metrics",
)
"""What people import from, in the order of the page."""

_BEGIN, _END = "<!-- generated: {} -->", "<!-- end -->"
_TOP = """# API reference

Written by `python -m experiments.reference` from the code: every public name, its parameters and the first
paragraph of its docstring. The docstrings say the rest: shapes, ranges, units, errors (`help(name)`). Images
are float tensors `[batch, 3, height, width]` in [0,1] everywhere.
"""


def main() -> None:
    """Write the generated parts of the docs anew."""
    for path, text in pages().items():
        write_whole(path, text)


def pages() -> dict[Path, str]:
    """Return the pages that hold generated parts, as they should be."""
    models, methods = DOCS / "models.md", DOCS / "methods" / "index.md"
    return {
        DOCS / "api.md": api(),
        models: _filled(models, {"models": models_table()}),
        methods: _filled(methods, {"protections": protections_table(), "purifiers": purifiers_table()}),
    }


def api() -> str:
    """Return the reference of all public names as Markdown."""
    parts = [_TOP]
    for name in MODULES:
        module = importlib.import_module(name)
        parts.append(f"\n## `{name}`\n\n{_first_paragraph(module)}\n")
        parts += [_entry(public, thing) for public, thing in public_names(module)]
    return "\n".join(parts)


def public_names(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the names of `__all__`, or else of what is defined in the module itself."""
    names = getattr(module, "__all__", None)
    if names is None:
        own = inspect.getmembers(module, lambda thing: getattr(thing, "__module__", "") == module.__name__)
        names = [name for name, thing in own if not name.startswith("_") and callable(thing)]
    for name in sorted(names, key=str.casefold):
        yield name, getattr(module, name)


def described(thing: Any) -> bool:
    """Say whether a public thing has a docstring of its own: not a constant, nor another name of a type."""
    return inspect.isclass(thing) or inspect.isroutine(thing)


def models_table() -> str:
    """Return the known checkpoints as a table."""
    rows = ["| name | what it is for | kind | licence | download | memory |", "|---|---|---|---|---|---|"]
    for row in KNOWN.values():
        size = "ships" if row.hub is None else f"{row.download:g} GB"
        link = row.alias if row.hub is None else f"[{row.alias}](https://huggingface.co/{row.hub})"
        rows.append(f"| {link} | {row.protects} | {row.kind} | {row.licence} | {size} | {row.memory:g} GB |")
    return "\n".join(rows)


def protections_table() -> str:
    """Return the protection methods as a table, with the page of each."""
    rows = ["| method | what it does | against | paper | page |", "|---|---|---|---|---|"]
    for name, entry in PROTECTIONS.items():
        method = _located(entry.path)
        page = _page_of(name)
        rows.append(f"| `{name}` | {entry.summary} | {entry.guards} | {method.paper} | [{page}]({page}) |")
    return "\n".join(rows)


def purifiers_table() -> str:
    """Return the purifiers as a table."""
    rows = ["| method | what it does |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{name}` | {row.summary} |" for name, row in PURIFIERS.items())])


def _page_of(method: str) -> str:
    """The page whose heading names a method."""
    for path in sorted((DOCS / "methods").glob("*.md")):
        if f"`{method}`" in path.read_text(encoding="utf-8").splitlines()[0]:
            return path.name
    raise LookupError(f"no page in docs/methods has `{method}` in its heading")


def _located(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _filled(path: Path, tables: dict[str, str]) -> str:
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin = _BEGIN.format(name)
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(_END)}", re.DOTALL)
        filled = f"{begin}\n{table}\n{_END}"
        text, count = pattern.subn(lambda _, filled=filled: filled, text)
        if count != 1:
            raise LookupError(f"{path} has {count} parts marked {begin}")
    return text


def _entry(name: str, thing: Any) -> str:
    if not described(thing):
        return f"### `{name}`\n\nA {type(thing).__name__.lstrip('_')}.\n"
    return f"### `{name}{_parameters(thing)}`\n\n{_first_paragraph(thing)}\n"


def _parameters(thing: Any) -> str:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return ""
    try:
        given = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return "(…)"
    bare = [each.replace(annotation=inspect.Parameter.empty, default=_shown(each)) for each in given]
    return str(inspect.Signature(bare)).replace("\n", " ")


def _shown(parameter: inspect.Parameter) -> Any:
    """A default as a person writes it, the same on every machine and in every version."""
    default = parameter.default
    if parameter.name in ("eps", "step_size") and isinstance(default, float):
        return _Words(f"{default * 255:g} / 255")
    plain = default is None or isinstance(default, (bool, int, float, str, tuple))
    return default if default is inspect.Parameter.empty or plain else _Words("…")


@dataclass(frozen=True)
class _Words:
    """Something that shows as these words."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _first_paragraph(thing: Any) -> str:
    text = inspect.getdoc(thing) or ""
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    main()
