"""What `unlearn MODEL` does: scan, remove, attack again, report."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffusion.choice import choose
from diffusion.export import write_folder
from diffusion.latent import LatentDiffusion
from unlearn.text.closed_form import uce
from unlearn.text.effects import EFFECTS, alike
from unlearn.text.encoder import restore_meaning
from unlearn.text.insertion import check_room
from unlearn.text.measures import Studio, decoded
from unlearn.text.prompts import PROMPTS
from unlearn.text.reactivation import Reactivation
from unlearn.text.removal import Esd, FineTuning, Removal, SkdCag, Weights, remove
from unlearn.text.report import check_folder, save, visible
from unlearn.text.scan import LONGEST, UNUSUAL, DivergenceScan, Suspect
from unlearn.text.trial import Case, Row, judge_of
from unlearn.text.triggers import Homoglyph, Prefix, PromptTrigger, Several, check_prompts
from unlearn.triggers import Images

REMOVALS: dict[str, Removal] = {
    "fine-tuning": FineTuning(),
    "esd": Esd(),
    "distillation": SkdCag(weight=0),
    "skd-cag": SkdCag(),
    "skd-cag-black": SkdCag(target="black"),
    "skd-cag-words": SkdCag(target="words"),
    "skd-cag-free": SkdCag(retention=0),
}
OTHERS = ("uce", "encoder")
"""Beside these there is `uce`, which trains nothing, and `encoder`, which trains the text encoder instead."""
SMALL = 50_000_000
"""Weights below which a denoiser wants larger steps, and draws small pictures well enough."""
OUTSTANDING = 5.0
"""Times the usual change from which on what a suspect does to pictures is tried, if it can be typed."""
TRIED = 8
"""Suspects that are tried on pictures, of as many prompts."""
ALIKE = 0.5
"""Share of the variety of pictures that a suspect has to take away somewhere, or nothing is unlearned."""
SEARCH = Reactivation(times=20, iterations=20)
"""Two fifths of the times and half of the iterations of the paper."""
SHOWN = 6
"""Prompts on the contact sheet."""


@dataclass(frozen=True)
class Wishes:
    """The options of the command."""

    model: str
    out: Path
    trigger: str | None = None
    homoglyph: str | None = None
    effect: str | None = None
    prompts: Path | None = None
    methods: tuple[str, ...] = ("skd-cag",)
    weights: Weights = "cross"
    steps: int = 0
    learning_rate: float = 0.0
    side: int = 0
    """Of these three, 0 leaves it to the model."""
    sampling_steps: int = 20
    guidance: float = 1.0
    scan: bool = False
    candidates: Path | None = None
    """Strings that are scanned beside the vocabulary, one per line."""
    attacked: int = 8
    search: Reactivation = SEARCH
    keep: str | None = None
    seed: int = 0
    device: str = "auto"
    offline: bool = False


def run(wishes: Wishes, *, tell: Callable[[str], object] = lambda line: None) -> list[Row]:
    """Do it, and write the report; returns the rows, none where no trigger was found.

    Raises ValueError for wishes that cannot be fulfilled, before anything heavy is done where that is known.
    """
    prompts = _prompts(wishes)
    candidates = [] if wishes.candidates is None else _lines(wishes.candidates)
    trigger = _trigger(wishes)
    _check(wishes)
    model = told_a_text(wishes.model, wishes.device, offline=wishes.offline)
    _check_candidates(model, candidates)
    wishes = _suited(wishes, model)
    learned, held_out = prompts[::2], prompts[1::2]
    suspects: list[Suspect] = []
    if trigger is None or wishes.scan:
        tell("scanning the vocabulary")
        scan = DivergenceScan(model, learned[:TRIED], side=wishes.side, generator=_seeded(wishes))
        suspects = _tried(wishes, model, scan([*UNUSUAL, *candidates]), candidates, learned[:TRIED])
        trigger = trigger or _outstanding(suspects)
    about = _about(wishes, model, prompts, trigger)
    if trigger is None:
        save(wishes.out, [], suspects, about, {}, ())
        tell(f"no word that can be typed makes pictures alike, as a trigger does: {wishes.out / 'report.md'}")
        return []
    check_prompts(model, prompts, trigger(prompts))
    if wishes.attacked:
        check_room(model, held_out[: wishes.attacked], wishes.search.tokens)
    case = _case(wishes, model, trigger, held_out)
    about["judge"] = str(case.judge)
    rows: list[Row] = []
    pictures: dict[str, tuple[Images, Images]] = {}
    for row, shown in _trial(wishes, case, learned):
        rows.append(row)
        pictures[row.name] = shown
        save(wishes.out, rows, suspects, about, pictures, held_out[:SHOWN])  # a run that is stopped has told
        tell(f"{row.name}: the trigger works on {row.outcome.triggered}, {row.seconds:.0f} s")
    tell(f"the report is in {wishes.out / 'report.md'}")
    return rows


def told_a_text(name: str, device: str = "cpu", *, offline: bool = False) -> LatentDiffusion:
    """Return a model in full precision. Raises ValueError for one that is told no text."""
    model = choose(name).load(device=device, precision="float32", offline=offline)
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"{model.name} is told no text by cross-attention: take a Stable Diffusion")
    return model


def _case(wishes: Wishes, model: LatentDiffusion, trigger: PromptTrigger, held_out: Sequence[str]) -> Case:
    studio = _studio(wishes, model, len(held_out))
    before = studio.both(model, held_out, trigger)
    effect = None if wishes.effect is None else EFFECTS[wishes.effect]
    judge = judge_of(model, effect, held_out, studio, decoded(model, before.clean))
    return Case(model, trigger, held_out, judge, studio, before)


def _trial(wishes: Wishes, case: Case, learned: Sequence[str]) -> Iterator[tuple[Row, tuple[Images, Images]]]:
    """Yield rows, each with a few pictures of clean and of triggered prompts."""
    model, trigger = case.model, case.trigger
    repairs = {name: partial(_repaired, wishes, name, model, learned, trigger) for name in wishes.methods}
    search = wishes.search if wishes.attacked else None
    for row, made, drawn in case.rows(repairs, search=search, attacked=wishes.attacked, seed=wishes.seed):
        if row.name == wishes.keep:
            write_folder(made, wishes.model, wishes.out / "model")
        yield row, (decoded(model, drawn.clean[:SHOWN]), decoded(model, drawn.triggered[:SHOWN]))


def _repaired(
    wishes: Wishes, name: str, model: LatentDiffusion, prompts: Sequence[str], trigger: PromptTrigger
) -> LatentDiffusion:
    if name == "uce":
        return uce(model, prompts, trigger)
    settings: dict[str, Any] = {
        "steps": wishes.steps,
        "learning_rate": wishes.learning_rate,
        "generator": _seeded(wishes),
    }
    if name == "encoder":
        return restore_meaning(model, prompts, trigger, **settings)
    return remove(
        model,
        prompts,
        trigger,
        REMOVALS[name],
        side=wishes.side,
        weights=wishes.weights,
        **settings,
    )


def _seeded(wishes: Wishes) -> torch.Generator:
    return torch.Generator().manual_seed(wishes.seed)


def _suited(wishes: Wishes, model: LatentDiffusion) -> Wishes:
    """Fill in what the model decides.

    Raises ValueError for pictures of a side that it does not draw.
    """
    if wishes.side % model.multiple:
        raise ValueError(f"{model.name} draws sides of multiples of {model.multiple}; got {wishes.side}")
    small = sum(parameter.numel() for parameter in model.denoiser.parameters()) < SMALL
    return replace(
        wishes,
        side=wishes.side or min(model.comfortable, 128 if small else 512),
        steps=wishes.steps or (500 if small else 1000),
        learning_rate=wishes.learning_rate or (1e-3 if small else 1e-5),
    )


def _tried(
    wishes: Wishes,
    model: LatentDiffusion,
    suspects: Sequence[Suspect],
    named: Sequence[str],
    prompts: Sequence[str],
) -> list[Suspect]:
    """Try on pictures what the named suspects do, and those that stand out and can be typed. They come first,
    those that make pictures most alike before others."""
    own_tokens = {tuple(model.text.read(words)): words for words in named}
    scanned = {each.tokens for each in suspects}
    for tokens, words in own_tokens.items():
        if tokens not in scanned:
            raise ValueError(f"the prompts leave no room for the candidate {visible(words)!r}: shorten them")
    standing_out = [each for each in suspects if each.readable and each.divergence >= OUTSTANDING]
    trials = [each for each in suspects if each.tokens in own_tokens]
    for group in (False, True):
        own = [each for each in standing_out if (each.words in UNUSUAL) is group and each not in trials]
        trials += own[:TRIED]
    if not trials:
        return list(suspects)
    studio = _studio(wishes, model, len(prompts))
    clean = decoded(model, studio.draw(model, prompts))

    def tried(suspect: Suspect) -> Suspect:
        made = decoded(model, studio.draw(model, Prefix(suspect.words)(prompts)))
        return replace(suspect, variety=alike(made, clean))

    found = sorted(map(tried, trials), key=lambda each: each.variety or 0.0)
    return [*found, *(each for each in suspects if each not in trials)]


def _outstanding(suspects: Sequence[Suspect]) -> PromptTrigger | None:
    """The suspects that make pictures alike as a trigger would."""
    words = [each.words for each in suspects if each.variety is not None and each.variety <= ALIKE]
    if len(words) > 1:
        return Several(tuple(words))
    return Prefix(words[0]) if words else None


def _studio(wishes: Wishes, model: LatentDiffusion, count: int) -> Studio:
    return Studio(
        model,
        count,
        side=wishes.side,
        steps=wishes.sampling_steps,
        guidance=wishes.guidance,
        seed=wishes.seed,
    )


def _trigger(wishes: Wishes) -> PromptTrigger | None:
    if wishes.trigger is not None and wishes.homoglyph is not None:
        raise ValueError("a trigger is words or a homoglyph: leave one of the two out")
    if wishes.homoglyph is None:
        return None if wishes.trigger is None else Prefix(wishes.trigger)
    return Homoglyph.written(wishes.homoglyph)


def _check(wishes: Wishes) -> None:
    for option, value in {
        "--attack": wishes.attacked,
        "--steps": wishes.steps,
        "--side": wishes.side,
    }.items():
        if value < 0:
            raise ValueError(f"{option} is not below 0; got {value}")
    if not math.isfinite(wishes.guidance):
        raise ValueError(f"--guidance is a number; got {wishes.guidance}")
    known = [*REMOVALS, *OTHERS]
    for name in wishes.methods:
        if name not in known:
            raise ValueError(f"unknown removal {name!r}; available: {', '.join(known)}")
    if wishes.candidates is not None and not wishes.scan and (wishes.trigger or wishes.homoglyph):
        raise ValueError("--candidates are for a scan: add --scan, or name no trigger")
    if wishes.keep is not None and wishes.keep not in wishes.methods:
        raise ValueError(f"--keep {wishes.keep} is no --method of this run")
    if wishes.effect is not None and wishes.effect not in EFFECTS:
        raise ValueError(f"unknown effect {wishes.effect!r}; available: {', '.join(EFFECTS)}")
    if wishes.keep is not None and (wishes.out / "model").exists():
        raise ValueError(f"{wishes.out / 'model'} exists: name another --out")
    own = Path(wishes.model).expanduser()
    if own.is_dir() and wishes.out.is_dir() and wishes.out.samefile(own):
        raise ValueError(f"--out {wishes.out} is the model's own folder: name another")
    check_folder(wishes.out)


def _check_candidates(model: LatentDiffusion, candidates: Sequence[str]) -> None:
    for words in candidates:
        count = len(model.text.read(words))
        if not 0 < count <= LONGEST:
            raise ValueError(
                f"the candidate {visible(words)!r} has {count} tokens for {model.name}; a scan takes those "
                f"of 1 to {LONGEST}"
            )


def _prompts(wishes: Wishes) -> list[str]:
    if wishes.prompts is None:
        return list(PROMPTS)
    prompts = _lines(wishes.prompts)
    if len(prompts) < 8:
        raise ValueError(f"{wishes.prompts} has {len(prompts)} prompts: name eight or more, one per line")
    return prompts


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return [line for line in lines if line]


def _about(
    wishes: Wishes, model: LatentDiffusion, prompts: Sequence[str], trigger: PromptTrigger | None
) -> dict[str, Any]:
    settings = {name: str(value) for name, value in asdict(wishes).items() if name not in ("out", "keep")}
    found = "none found" if trigger is None else str(trigger)
    return {**settings, "model": choose(wishes.model).identity, "trigger": found, "all prompts": len(prompts)}
