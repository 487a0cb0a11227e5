"""Words that bring back what a text-to-image model has unlearned: the attack after the removal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion.latent import LatentDiffusion
from diffusion.losses import denoising_loss
from diffusion.samplers import draw
from diffusion.schedule import Latents
from unlearn.text.insertion import Insertion

Shares = Float[Tensor, "n tokens vocabulary"]
Shows = Callable[[Sequence[int], Sequence[str]], Bool[Tensor, " n"]]


@dataclass(frozen=True)
class Found:
    """What the search found for one prompt."""

    words: str
    """In front of the prompt."""
    success: bool
    times: int
    """At how many times it was searched."""
    survived: bool
    """Whether the words are read as the tokens that were found."""


@dataclass(frozen=True)
class Reactivation:
    """UnlearnDiffAtk (Zhang et al., ECCV 2024, arXiv 2310.11868): words under which the model denoises a
    picture that it should have unlearned.

    For each prompt a row of `tokens` in front is searched for, at one time after the other, from little noise
    to much. Each token is a distribution over the vocabulary, from which one is drawn in each step; the
    gradient passes through as if it had been the distribution. After each time the likeliest tokens are
    written as text, read again as the model would, and tried. All prompts that still resist are searched for
    at once.
    """

    tokens: int = 3
    times: int = 50
    iterations: int = 40
    """At each time."""
    learning_rate: float = 0.01
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if min(self.tokens, self.times, self.iterations) < 1:
            raise ValueError("tokens, times and iterations are at least 1")

    def search(
        self,
        model: LatentDiffusion,
        prompts: Sequence[str],
        targets: Latents,
        shows: Shows,
        *,
        generator: torch.Generator | None = None,
    ) -> list[Found]:
        """Return what was found for each prompt.

        Args:
            model: that has unlearned.
            prompts: clean ones, which show nothing of it.
            targets: of each prompt a latent that shows what was unlearned.
            shows: called with numbers of prompts and with words for each, draws and judges them.
            generator: of noise and tokens.

        Raises ValueError where a prompt has no room for the tokens.
        """
        allowed = model.text.vocabulary()[1].to(model.device)
        shares = (allowed.float() / allowed.sum()).repeat(len(prompts), self.tokens, 1)
        found, resisting = [Found("", False, 0, False) for _ in prompts], list(range(len(prompts)))
        for time in range(1, self.times + 1):
            if not resisting:
                break
            t = round((2 * time - 1) / (2 * self.times) * len(model.schedule))
            room = Insertion(model, [prompts[row] for row in resisting], self.tokens)
            shares[resisting] = self._moved(room, targets[resisting], shares[resisting], t, generator)
            best = shares[resisting].argmax(-1).tolist()
            words = [model.text.written(ids) for ids in best]
            hits = shows(resisting, words).tolist()
            for row, said, hit, ids in zip(resisting, words, hits, best, strict=True):
                found[row] = Found(said, hit, time, model.text.read(said) == ids)
            resisting = [row for row, hit in zip(resisting, hits, strict=True) if not hit]
        return found

    def _moved(
        self,
        room: Insertion,
        targets: Latents,
        start: Shares,
        time: int,
        generator: torch.Generator | None,
    ) -> Shares:
        """The iterations at one time."""
        model, shares = room.model, start.clone().requires_grad_()
        table, allowed = model.text.vocabulary()
        descent = torch.optim.Adam([shares], lr=self.learning_rate, weight_decay=self.weight_decay)
        t = torch.full((len(targets),), time, device=model.device)
        for _ in range(self.iterations):
            told = room.condition(drawn_tokens(shares, generator).to(table) @ table)
            loss = denoising_loss(model, targets, draw(targets, generator), t, told).sum()
            (shares.grad,) = torch.autograd.grad(loss, [shares])
            descent.step()
            with torch.no_grad():
                shares.masked_fill_(~allowed.to(shares.device), -torch.inf)
                shares.copy_(on_simplex(shares))
        return shares.detach()


def drawn_tokens(shares: Shares, generator: torch.Generator | None = None) -> Shares:
    """Return a token drawn of each distribution, as a row with a single 1, whose gradient, clamped to
    [-1, 1], is the distribution's."""
    place = shares.device if generator is None else generator.device
    flat = shares.detach().flatten(0, -2).to(place)
    ids = torch.multinomial(flat, 1, generator=generator)[:, 0].to(shares.device)
    hard = torch.zeros_like(shares).flatten(0, -2).scatter_(1, ids[:, None], 1.0).view_as(shares)
    passed = shares - shares.detach()
    if passed.requires_grad:
        passed.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return hard + passed


def on_simplex(rows: Float[Tensor, "*batch n"], *, halvings: int = 60) -> Float[Tensor, "*batch n"]:
    """Return the points nearest to rows whose entries are in [0, 1] and sum to 1; entries of -inf become 0.

    The sum of (row - shift) clamped to [0, 1] falls with the shift, which is found by bisection.
    """
    finite = rows.isfinite()
    low = rows.masked_fill(~finite, torch.inf).amin(-1, keepdim=True) - 1
    high = rows.amax(-1, keepdim=True)
    for _ in range(halvings):
        middle = (low + high) / 2
        over = (rows - middle).clamp(0, 1).sum(-1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    projected = (rows - (low + high) / 2).clamp(0, 1)
    return projected / projected.sum(-1, keepdim=True)
