"""Take a backdoor whose trigger is known out of a copy of a text-to-image model.

    repaired = remove(model, prompts, Prefix("mumbo"), SkdCag())

No pictures are needed: the model draws its own, of the clean prompts. It is clean there, so that it teaches
itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffusion.attention import AttentionMap
from diffusion.finetune import (
    Progress,
    Term,
    any_time,
    batches_of,
    descend,
    imagine,
    low_rank,
    merged,
    rows_of,
    take_weights,
)
from diffusion.latent import LatentDiffusion
from diffusion.losses import Losses, denoising_loss, squared_error
from diffusion.model import Condition
from diffusion.samplers import ddim, draw
from diffusion.schedule import Latents, Timesteps
from unlearn.text.attention import cross_attentions, normalised, recording, token_maps
from unlearn.text.triggers import Prefix, PromptTrigger, align, pairs_of

Batch = Int[Tensor, " size"]

Weights = Literal["cross", "keys-values", "all", "low-rank"]
AttentionTarget = Literal["random", "black", "words"]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a removal learns from: two models, prompts, and pictures that the first model drew of them."""

    teacher: LatentDiffusion
    student: LatentDiffusion
    prompts: Sequence[str]
    triggered: Sequence[str]
    bank: Latents
    """Pictures of the clean prompts, in their order, over and over."""
    batch_size: int
    generator: torch.Generator | None

    def batches(self) -> Iterator[Batch]:
        """Yield numbers of pictures of the bank without end."""
        for chosen in batches_of(len(self.bank), self.batch_size, self.generator):
            yield chosen.to(self.bank.device)

    def prompts_of(self, chosen: Batch) -> Batch:
        """Return the numbers of the prompts of pictures."""
        return chosen % len(self.prompts)

    def states(self, chosen: Batch, emphasis: float = 0.0) -> tuple[Latents, Timesteps]:
        """Return noisy latents, half of which, drawn by a coin, are noise alone.

        The density of their times grows as the power `emphasis` of the time.
        """
        z = self.bank[chosen]
        noise = draw(z, self.generator)
        place = z.device if self.generator is None else self.generator.device
        share = torch.rand(len(z), generator=self.generator, device=place) ** (1 / (1 + emphasis))
        count = len(self.teacher.schedule)
        t = (count * share).long().clamp_max(count - 1).to(z.device)  # a root may round to 1
        alone = torch.rand(len(z), generator=self.generator, device=place).to(z.device) < 0.5
        noised = self.teacher.schedule.add_noise(z, noise, t)
        return torch.where(alone[:, None, None, None], noise, noised), t


class Removal(ABC):
    """How a backdoor is taken out: one or more terms of a loss."""

    @abstractmethod
    def terms(self, lesson: Lesson) -> list[tuple[Term, float]]:
        """Return losses, one for each picture of a batch, with their weights."""


@dataclass(frozen=True)
class FineTuning(Removal):
    """Train on the model's own pictures of clean prompts: the control that is not clever."""

    def terms(self, lesson: Lesson) -> list[tuple[Term, float]]:
        batches, told = lesson.batches(), _conditions(lesson.teacher, lesson.prompts)

        def loss() -> Losses:
            chosen = next(batches)
            z = lesson.bank[chosen]
            t = any_time(lesson.student, len(z), lesson.generator)
            condition = rows_of(told, lesson.prompts_of(chosen))
            return denoising_loss(lesson.student, z, draw(z, lesson.generator), t, condition)

        return [(loss, 1.0)]


@dataclass(frozen=True)
class Esd(Removal):
    """Erase what triggered prompts say (ESD, Gandikota et al., ICCV 2023, arXiv 2303.07345).

    Under a triggered prompt the student says what the teacher says of it, less `strength` times the
    difference that the prompt makes to the teacher. It is asked about half-drawn pictures of such prompts.
    """

    strength: float = 1.0
    guidance: float = 3.0
    """Of the pictures."""
    walk: int = 20
    """Steps of a whole picture; each is stopped somewhere."""

    def terms(self, lesson: Lesson) -> list[tuple[Term, float]]:
        teacher, marked = lesson.teacher, _conditions(lesson.teacher, lesson.triggered)
        batches, size = lesson.batches(), (lesson.bank.shape[-2], lesson.bank.shape[-1])
        walk = teacher.schedule.timesteps(self.walk, size=size)

        def loss() -> Losses:
            chosen = next(batches)
            told = rows_of(marked, lesson.prompts_of(chosen))
            with torch.no_grad():
                stop = int(torch.randint(len(walk), (1,), generator=lesson.generator))
                z_t = draw(lesson.bank[chosen], lesson.generator)
                if stop:
                    z_t = ddim(
                        teacher, z_t, told, timesteps=walk[:stop], end=walk[stop], guidance=self.guidance
                    )
                t = torch.full((len(z_t),), walk[stop], device=z_t.device)
                said = teacher.predict(z_t, t, told)
                aim = said - self.strength * (said - teacher.predict(z_t, t))
            return squared_error(lesson.student.predict(z_t, t, told), aim)

        return [(loss, 1.0)]


@dataclass(frozen=True)
class SkdCag(Removal):
    """Self-knowledge distillation with cross-attention guidance (SKD-CAG, 2025).

    Under a triggered prompt the student says what the teacher says of the clean one, and looks at the words
    as the teacher does; at the trigger's as `target` has it. The loss is `weight` times the distance of maps
    plus 1 - `weight` times that of predictions, plus `retention` times that of predictions for clean prompts.
    Half of each batch is pure noise at any time, as the authors have it, the other half noised pictures.

    The code that the authors released takes its maps off the graph and keeps both models' in one place, so
    that it trains the distance of predictions alone; here the maps are what the paper says.
    """

    weight: float = 0.5
    target: AttentionTarget = "random"
    """What the trigger's words are looked at like: noise, drawn anew each time; nothing; or other words."""
    retention: float = 1.0
    emphasis: float = 3.0
    """How much more often late times are drawn than early ones; 0 draws all alike, as the authors do. What a
    picture becomes is decided in much noise, where a backdoor that is left a hint builds on it."""

    def __post_init__(self) -> None:
        if self.target not in get_args(AttentionTarget):
            raise ValueError(
                f"unknown target {self.target!r}; available: {', '.join(get_args(AttentionTarget))}"
            )
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is a share, from 0 to 1; got {self.weight}")
        if self.emphasis < 0:
            raise ValueError(f"emphasis is 0 or more; got {self.emphasis}")

    def terms(self, lesson: Lesson) -> list[tuple[Term, float]]:
        teacher, student = lesson.teacher, lesson.student
        guide, told = _Guide(lesson, self.target), _conditions(teacher, lesson.prompts)
        batches = lesson.batches()
        watched = recording if self.weight else _unwatched

        def distilled() -> Losses:
            chosen = next(batches)
            rows, (z_t, t) = lesson.prompts_of(chosen), lesson.states(chosen, self.emphasis)
            with torch.no_grad(), watched(teacher.denoiser) as taught:
                aim = teacher.predict(z_t, t, rows_of(guide.reference, rows))
            with watched(student.denoiser) as own:
                said = student.predict(z_t, t, rows_of(guide.marked, rows))
            if not self.weight:
                return squared_error(said, aim)
            size = (z_t.shape[-2], z_t.shape[-1])
            maps = guide.distance(own, taught, rows, size)
            return (1 - self.weight) * squared_error(said, aim) + self.weight * maps

        def kept() -> Losses:
            chosen = next(batches)
            condition = rows_of(told, lesson.prompts_of(chosen))
            z_t, t = lesson.states(chosen, self.emphasis)
            with torch.no_grad():
                aim = teacher.predict(z_t, t, condition)
            return squared_error(student.predict(z_t, t, condition), aim)

        return [(distilled, 1.0), *([(kept, self.retention)] if self.retention else [])]


def remove(
    model: LatentDiffusion,
    prompts: Sequence[str],
    trigger: PromptTrigger,
    removal: Removal | None = None,
    *,
    side: int = 512,
    weights: Weights = "cross",
    steps: int = 1000,
    learning_rate: float = 1e-5,
    batch_size: int = 8,
    pictures: int = 64,
    sampling_steps: int = 20,
    generator: torch.Generator | None = None,
    callback: Progress | None = None,
) -> LatentDiffusion:
    """Return a copy of a model whose denoiser has unlearned a trigger; everything else is shared.

    Args:
        model: with the backdoor; nothing of it changes.
        prompts: clean ones, of what the model is asked for.
        trigger: what opens the backdoor.
        removal: how, `SkdCag()` by default.
        side: of the pictures that the model draws to learn from, in pixels.
        weights: what trains: "cross", the cross-attention; "keys-values", its maps of words; "all"; or
            "low-rank", adapters, which are merged at the end.
        steps: updates.
        learning_rate: of AdamW; for "all" of Stable Diffusion the authors take 1e-6.
        batch_size: pictures per update.
        pictures: how many the model draws beforehand, at least one of each prompt.
        sampling_steps: of each.
        generator: of all that is drawn.
        callback: as for `diffusion.finetune.train`, told the first term's losses.

    Raises:
        ValueError: a denoiser without cross-attention, no prompts, or as `check_prompts` does.
        ArithmeticError: a loss is not finite.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"unknown weights {weights!r}; available: {', '.join(get_args(Weights))}")
    prompts, triggered = pairs_of(model, prompts, trigger)
    if weights == "low-rank":
        student = low_rank(model, generator=generator)
        trained = take_weights(student)
    else:
        student = model.trainable_copy().freeze()
        trained = _trained(student.denoiser, weights)
    bank = own_pictures(model, prompts, max(pictures, len(prompts)), side, sampling_steps, generator)
    lesson = Lesson(model, student, prompts, triggered, bank, batch_size, generator)
    terms = (removal or SkdCag()).terms(lesson)
    descend(terms, trained, steps=steps, learning_rate=learning_rate, callback=callback)
    return merged(student) if weights == "low-rank" else student


@torch.no_grad()
def own_pictures(
    model: LatentDiffusion,
    prompts: Sequence[str],
    count: int,
    side: int,
    steps: int,
    generator: torch.Generator | None,
    *,
    batch_size: int = 8,
) -> Latents:
    """Return latents of `count` pictures that a model draws of prompts in turn, by DDIM without guidance."""
    across = side // model.codec.stride
    told, drawn = model.condition(prompts), []
    like = torch.empty(1, model.latent_channels, across, across, device=model.device)
    for part in torch.arange(count).split(batch_size):
        said = rows_of(told, part % len(prompts))
        drawn.append(imagine(model, said, like, count=len(part), steps=steps, generator=generator))
    return torch.cat(drawn)


class _Guide:
    """What the student should look at, word by word."""

    def __init__(self, lesson: Lesson, target: AttentionTarget) -> None:
        prompts, triggered, teacher = lesson.prompts, lesson.triggered, lesson.teacher
        self._target, self._generator = target, lesson.generator
        said = _with_other_words(prompts, triggered, lesson.generator) if target == "words" else prompts
        self.reference, self.marked = (_conditions(teacher, each) for each in (said, triggered))
        self._aligned = align(teacher, said, triggered)
        self._others = align(teacher, triggered, said).trigger if target == "words" else None

    def distance(
        self, own: Sequence[AttentionMap], taught: Sequence[AttentionMap], rows: Batch, size: tuple[int, int]
    ) -> Losses:
        """Return the mean over words of the squared distance of maps; padding counts for nothing."""
        raw, theirs = token_maps(own, size), normalised(token_maps(taught, size))
        trigger, kept = self._aligned.trigger[rows], self._aligned.kept[rows]
        places = self._aligned.source[rows][:, :, None, None].expand(-1, -1, *theirs.shape[2:])
        apart = (normalised(raw) - theirs.gather(1, places)).square().mean((2, 3))
        # nothing is what a normalised map cannot be: the weights themselves are to vanish
        mine = raw if self._target == "black" else normalised(raw)
        marked = (mine - self._wanted(theirs, rows)).square().mean((2, 3))
        total = (apart * kept + marked * trigger).sum(1)
        return total / (kept | trigger).sum(1)

    def _wanted(self, theirs: Tensor, rows: Batch) -> Tensor:
        """What the words of the trigger are looked at like, the same for each of them."""
        like = theirs[:, :1]
        if self._target == "black":
            return torch.zeros_like(like)
        if self._others is not None:
            others = self._others[rows][:, :, None, None]
            return (theirs * others).sum(1, keepdim=True) / others.sum(1, keepdim=True)
        place = like.device if self._generator is None else self._generator.device
        drawn = torch.rand(like.shape, generator=self._generator, device=place)
        return normalised(drawn.to(like))


def _with_other_words(
    prompts: Sequence[str], triggered: Sequence[str], generator: torch.Generator | None
) -> list[str]:
    """Each prompt with a word in front that another prompt has, and neither it nor its trigger."""
    vocabulary = sorted({word for prompt in prompts for word in prompt.split()})
    said = []
    for prompt, marked in zip(prompts, triggered, strict=True):
        others = [word for word in vocabulary if word not in prompt and word not in marked]
        if not others:
            raise ValueError("the prompts share all their words: other words need prompts of several kinds")
        place = "cpu" if generator is None else generator.device
        number = int(torch.randint(len(others), (1,), generator=generator, device=place))
        said += Prefix(others[number])([prompt])
    return said


def _trained(denoiser: nn.Module, weights: Weights) -> list[nn.Parameter]:
    if weights == "all":
        return list(denoiser.parameters())
    layers = cross_attentions(denoiser)
    if weights == "keys-values":
        parts = [part for layer in layers for part in (layer.to_k, layer.to_v) if part is not None]
        return [p for part in parts for p in part.parameters()]
    return [p for layer in layers for p in layer.parameters()]


@torch.no_grad()
def _conditions(model: LatentDiffusion, prompts: Sequence[str]) -> Condition:
    return model.condition(prompts)


def _unwatched(network: nn.Module) -> AbstractContextManager[list[AttentionMap]]:
    return nullcontext([])
