"""LightningCLI that answers a mistake in one line, and an unknown key with the nearest one."""

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import lightning as L
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from attacks import NonFiniteError
from distill.method import Method

UNKNOWN = re.compile(r"(?:Option|Key|Group|key) ['\"]([\w.]+)['\"] is not|arguments: --([\w.]+)")


class HelpfulParser(LightningArgumentParser):
    """A parser that says what is wrong instead of all that would be right."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [action.dest for action in self._actions]
        print(f"{reason(message)}{hint(message, [*options, *_loaded()])}", file=sys.stderr)
        sys.exit(2)


class TrainingCLI(LightningCLI):
    """LightningCLI with `HelpfulParser`."""

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        parser = HelpfulParser(**options)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="a configuration file")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own warns of any `args` beside a command line; these are that command line
        self.config = parser.parse_args(args)


def train(arguments: Sequence[str]) -> None:
    """Run LightningCLI; what it is given wrongly, and a loss that is not finite, is one line and exit code
    1."""
    try:
        TrainingCLI(save_config_kwargs={"overwrite": True}, seed_everything_default=0, args=list(arguments))
    except (ValueError, OSError, NonFiniteError) as error:
        print(f"{arguments[0] if arguments else 'experiments'}: {reason(str(error))}", file=sys.stderr)
        sys.exit(1)


def reason(message: str) -> str:
    """Return what a message of jsonargparse says is wrong, in one line, without all that it was given."""
    head, _, listed = message.partition("Errors:")
    reasons = [each for each in re.findall(r"^\s*- (.+)$", listed, re.MULTILINE) if "NoneType" not in each]
    if not reasons:
        return " ".join(message.split())
    key = re.search(r"[Kk]ey \S+:", head)
    return " ".join(([key[0]] if key else []) + ["; ".join(dict.fromkeys(reasons))])


def hint(message: str, known: Sequence[str]) -> str:
    """Say which known key is most like the unknown one that a message complains of, by its last part."""
    found = UNKNOWN.search(message)
    if found is None:
        return ""
    wanted = (found[1] or found[2]).split(".")[-1]
    near = get_close_matches(wanted, [each.split(".")[-1] for each in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _loaded() -> Iterator[str]:
    """The options of every class that a configuration has named so far."""
    waiting: list[type] = [L.LightningModule, L.LightningDataModule, L.Callback, Method]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        yield from list(inspect.signature(kind.__init__).parameters)[1:]
