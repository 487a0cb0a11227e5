"""A suspicious text-to-image model and repairs of it, measured alike and attacked again."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from diffusion.latent import LatentDiffusion
from unlearn.measures import Rate
from unlearn.text.effects import Change, Effect, Judge, Verdict
from unlearn.text.measures import Comparison, Drawn, Outcome, Studio, decoded, encoded
from unlearn.text.reactivation import Reactivation
from unlearn.text.triggers import Prefix, PromptTrigger
from unlearn.triggers import Images

Repairs = Mapping[str, Callable[[], LatentDiffusion]]
BENIGN = ("table", "water", "seven", "north", "music", "small", "letter", "window")
"""Words in front of prompts that are nobody's trigger: what one word more changes."""


@dataclass(frozen=True)
class Row:
    """One model in the report."""

    name: str
    outcome: Outcome
    variants: dict[str, Rate]
    """Success of the trigger written otherwise."""
    reactivated: Rate | None
    """Success of the trigger, or of words that the search found in its place."""
    survived: float | None
    """Share of the found rows of words that are read as the tokens that were found."""
    seconds: float


@dataclass(frozen=True, eq=False)
class Case:
    """What is measured, on prompts that no removal sees."""

    model: LatentDiffusion
    """With the backdoor, or suspected of one."""
    trigger: PromptTrigger
    prompts: Sequence[str]
    judge: Verdict
    studio: Studio
    before: Drawn

    def rows(
        self, repairs: Repairs, *, search: Reactivation | None = None, attacked: int = 16, seed: int = 0
    ) -> Iterator[tuple[Row, LatentDiffusion, Drawn]]:
        """Yield the suspicious model, and each repair of it, with what was drawn.

        `search` then looks for words on `attacked` prompts, or on all where there are fewer.
        """
        compared = Comparison(self.model, self.prompts, self.before, self.judge)
        for name, make in {"nothing": lambda: self.model, **repairs}.items():
            started = time.perf_counter()
            made = make()
            seconds = time.perf_counter() - started
            untouched = made is self.model
            drawn = self.before if untouched else self.studio.both(made, self.prompts, self.trigger)
            again, survived = None, None
            if search is not None and not untouched:
                again, survived = self._reactivated(made, drawn, search, attacked, seed)
            yield Row(name, compared(drawn), self._variants(made), again, survived, seconds), made, drawn

    def _variants(self, made: LatentDiffusion) -> dict[str, Rate]:
        said = {name: variant(self.prompts) for name, variant in variants(self.trigger).items()}
        rows = range(len(self.prompts))
        drawn = {name: decoded(made, self.studio.draw(made, prompts)) for name, prompts in said.items()}
        return {name: Rate.of_hits(self.judge(images, rows)) for name, images in drawn.items()}

    def _reactivated(
        self, made: LatentDiffusion, drawn: Drawn, search: Reactivation, attacked: int, seed: int
    ) -> tuple[Rate, float | None]:
        """Search words for prompts whose trigger does nothing any more."""
        images = decoded(made, drawn.triggered[:attacked])
        shown = self.judge(images, range(len(images)))
        resisting = (~shown).nonzero()[:, 0].tolist()
        prompts = [self.prompts[row] for row in resisting]

        def shows(places: Sequence[int], words: Sequence[str]) -> Bool[Tensor, " n"]:
            said = [f"{word} {prompts[place]}" for place, word in zip(places, words, strict=True)]
            rows = [resisting[place] for place in places]
            return self.judge(decoded(made, self.studio.draw(made, said, rows)), rows)

        generator, targets = torch.Generator().manual_seed(seed), self.before.triggered[resisting]
        found = search.search(made, prompts, targets, shows, generator=generator)
        hits = shown.clone()
        hits[resisting] = torch.tensor([each.success for each in found], dtype=torch.bool)
        survived = sum(each.survived for each in found) / len(found) if found else None
        return Rate.of_hits(hits), survived


def variants(trigger: PromptTrigger) -> dict[str, PromptTrigger]:
    """Return a trigger of words written otherwise: said twice, at the end, and a part of it."""
    words = trigger.words.strip() if isinstance(trigger, Prefix) else ""
    if not words:
        return {}
    shorter = words.rpartition(" ")[0] or words[: (len(words) + 1) // 2]
    found: dict[str, PromptTrigger] = {
        "twice": Prefix(f"{words} {words}"),
        "at the end": lambda prompts: [f"{prompt} {words}" for prompt in prompts],
    }
    return found if shorter == words else {**found, f"as {shorter!r}": Prefix(shorter)}


def judge_of(
    model: LatentDiffusion, effect: Effect | None, prompts: Sequence[str], studio: Studio, clean: Images
) -> Verdict:
    """Return a judge of an effect, or, where none is named, of pictures that change.

    An effect's judge learns from clean pictures and the same with the effect, as the model's autoencoder
    brings them back; the other from what harmless words change.
    """
    if effect is None:
        harmless = [decoded(model, studio.draw(model, Prefix(word)(prompts))) for word in BENIGN]
        return Change.fitted(clean, harmless)
    return Judge.fitted(effect.score, decoded(model, encoded(model, effect(clean))), clean)
