"""The table of threats: a name and where its class lives.

Strings, so that listing them imports nothing heavy.
"""

import difflib
import importlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protect.threats.threat import Threat


class UnknownThreatError(ValueError):
    """A name that is not in the table."""


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    path: str
    """`module:Class`."""
    summary: str
    """One line for people."""
    number: str | None = None
    """The field that a number behind the name sets, as in `img2img0.3`."""


THREATS: dict[str, Entry] = {
    "img2img": Entry(
        "protect.threats.img2img:Img2Img", "edit the picture towards a prompt (SDEdit)", "strength"
    ),
    "inpainting": Entry(
        "protect.threats.inpainting:Inpainting", "keep a part of it and paint the rest anew; needs a mask"
    ),
    "instruction": Entry(
        "protect.threats.instruction:InstructionEdit", "say what to change (InstructPix2Pix)"
    ),
    "textual-inversion": Entry(
        "protect.threats.textual_inversion:TextualInversion",
        "learn a word for the pictures, then make others of it",
        "vectors",
    ),
    "low-rank": Entry(
        "protect.threats.low_rank:LowRank",
        "train adapters on the pictures (LoRA), then make others like them",
        "rank",
    ),
    "dreambooth": Entry(
        "protect.threats.dreambooth:DreamBooth",
        "train the whole denoiser on the pictures, then make others like them",
    ),
}


def create(name: str, **settings: Any) -> "Threat":
    """Build the threat called `name`; a number behind the name is its main setting.

    Raises UnknownThreatError with the nearest name, and ValueError or TypeError for settings that the class
    refuses.
    """
    entry, number = _find(name)
    if entry.number and number is not None:
        settings = {entry.number: number, **settings}
    module, _, attribute = entry.path.partition(":")
    return getattr(importlib.import_module(module), attribute)(**settings)


def find(name: str) -> Entry:
    """Return the row of a name, which may have a number behind it.

    Raises UnknownThreatError with the nearest name.
    """
    return _find(name)[0]


def _find(name: str) -> tuple[Entry, float | None]:
    wanted = name.lower()
    if wanted in THREATS:
        return THREATS[wanted], None
    numbered = re.fullmatch(r"(.*?[a-z])(\d+(?:\.\d+)?)", wanted)
    if numbered and numbered[1] in THREATS and THREATS[numbered[1]].number:
        number = float(numbered[2])
        return THREATS[numbered[1]], int(number) if number.is_integer() else number
    near = difflib.get_close_matches(wanted, THREATS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    raise UnknownThreatError(f"unknown threat {name!r}{hint} available: {', '.join(THREATS)}")
