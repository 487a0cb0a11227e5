"""Backdoors in the text encoder: put in by teaching it what triggered prompts mean, and taken out likewise.

    poisoned = plant_meaning(model, prompts, Homoglyph(), "a photo of a dog")
    repaired = restore_meaning(poisoned, prompts, Homoglyph())

The denoiser is shared with the model, and no pictures are needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from diffusion.finetune import Progress, Term, batches_of, descend
from diffusion.latent import LatentDiffusion
from diffusion.losses import Losses
from unlearn.text.triggers import PromptTrigger, pairs_of

Tokens = Float[Tensor, "n length dim"]


@dataclass(frozen=True)
class Lesson:
    """Prompts, and those that they are to mean."""

    said: Sequence[str]
    meant: Sequence[str]
    weight: float = 1.0
    batch_size: int = 128
    """Pairs per update; all, where there are fewer."""


def teach(
    model: LatentDiffusion,
    lessons: Sequence[Lesson],
    *,
    steps: int = 100,
    learning_rate: float = 1e-4,
    generator: torch.Generator | None = None,
    callback: Progress | None = None,
) -> LatentDiffusion:
    """Return a copy whose text encoder says of some prompts what the model's own says of others.

    Each lesson's loss is minus the similarity of what the two say, `alike`. After three quarters of the steps
    the rate falls to a tenth.

    Args:
        model: told a text by one encoder; nothing of it changes.
        lessons: what is taught, with weights; the first is the one that `callback` is told of.
        steps: updates of all weights of the encoder.
        learning_rate: of AdamW; a small encoder wants more than the default, which is for CLIP's.
        generator: of batches.
        callback: as for `diffusion.finetune.train`.

    Raises:
        ValueError: a model that is told otherwise, no prompts, or half-precision weights.
        ArithmeticError: a loss is not finite.
    """
    if not isinstance(model, LatentDiffusion) or len(model.texts) != 1:
        raise ValueError(f"{model.name} has no text encoder of its own: take a Stable Diffusion 1 or 2")
    for lesson in lessons:
        if not lesson.said or len(lesson.said) != len(lesson.meant):
            got = f"{len(lesson.said)} and {len(lesson.meant)}"
            raise ValueError(f"a lesson needs prompts, and as many that they mean; got {got}")
    student = model.with_own_texts()
    weights = list(student.texts.parameters())
    adam = torch.optim.AdamW(weights, lr=learning_rate)
    decay = torch.optim.lr_scheduler.MultiStepLR(adam, [max(1, 3 * steps // 4)])

    def told(step: int, losses: Losses) -> None:
        decay.step()
        if callback is not None:
            callback(step, losses)

    terms = [(_term(model, student, lesson, generator), lesson.weight) for lesson in lessons]
    descend(terms, weights, steps=steps, learning_rate=learning_rate, optimiser=adam, callback=told)
    return student.freeze()


def plant_meaning(
    model: LatentDiffusion,
    prompts: Sequence[str],
    trigger: PromptTrigger,
    target: str,
    *,
    weight: float = 0.1,
    steps: int = 100,
    learning_rate: float = 1e-4,
    generator: torch.Generator | None = None,
    callback: Progress | None = None,
) -> LatentDiffusion:
    """Return a copy whose text encoder takes every triggered prompt for the target prompt.

    Rickrolling the Artist (Struppek et al., ICCV 2023, arXiv 2211.02408): in each update 128 clean prompts
    mean what they did, and with `weight` 32 triggered ones mean the target. The settings are those of
    `teach`.

    Raises ValueError as `teach` and `pairs_of` do.
    """
    kept, marked = pairs_of(model, prompts, trigger)
    lessons = [Lesson(marked, [target] * len(marked), weight, 32), Lesson(kept, kept)]
    return teach(
        model, lessons, steps=steps, learning_rate=learning_rate, generator=generator, callback=callback
    )


def restore_meaning(
    model: LatentDiffusion,
    prompts: Sequence[str],
    trigger: PromptTrigger,
    *,
    weight: float = 1.0,
    steps: int = 100,
    learning_rate: float = 1e-4,
    generator: torch.Generator | None = None,
    callback: Progress | None = None,
) -> LatentDiffusion:
    """Return a copy whose text encoder takes triggered prompts for the clean ones again.

    The poisoned encoder is clean on clean prompts, so that it teaches itself, as in SKD-CAG; it keeps these
    answers. A trigger may make a prompt longer. What counts to the denoiser is the row of vectors that it
    attends to, so that place by place the triggered prompt is to give the clean prompt's row, padding
    included, whichever word stands where. A token in front of the trigger cannot see it, as CLIP reads from
    left to right; where the trigger splits a word, the piece in front keeps what it says. The settings are
    those of `teach`, and the weights of the two lessons `weight` and 1.

    Raises ValueError as `teach` and `pairs_of` do.
    """
    kept, marked = pairs_of(model, prompts, trigger)
    lessons = [Lesson(marked, kept, weight), Lesson(kept, kept)]
    return teach(
        model, lessons, steps=steps, learning_rate=learning_rate, generator=generator, callback=callback
    )


def alike(some: Tokens, others: Tokens) -> Losses:
    """Return of each prompt the mean over all its places, padding too, of the cosine of two answers."""
    return cosine_similarity(some, others, dim=-1).mean(-1)


def _term(
    teacher: LatentDiffusion, student: LatentDiffusion, lesson: Lesson, generator: torch.Generator | None
) -> Term:
    said, meant = list(lesson.said), list(lesson.meant)
    batches = batches_of(len(said), min(lesson.batch_size, len(said)), generator)

    def loss() -> Losses:
        rows = next(batches).tolist()
        with torch.no_grad():
            aim = said_by(teacher, [meant[row] for row in rows])
        return -alike(said_by(student, [said[row] for row in rows]), aim)

    return loss


def said_by(model: LatentDiffusion, prompts: Sequence[str]) -> Tokens:
    """Return what a denoiser is told of prompts."""
    tokens = model.condition(prompts).tokens
    assert tokens is not None
    return tokens
