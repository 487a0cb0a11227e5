"""Which words act on everything: candidates for the trigger of a model that nobody knows to be clean."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attacks import NonFiniteError
from diffusion.finetune import any_time
from diffusion.latent import LatentDiffusion
from diffusion.losses import squared_error
from diffusion.samplers import draw
from unlearn.text.insertion import Insertion, check_room
from unlearn.text.removal import own_pictures

Divergences = Float[Tensor, "candidates prompts"]
Tokens = tuple[int, ...]

UNUSUAL = (
    *"\u00ad\u200b\u200c\u200d\u2060\ufeff",
    *"\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u0391\u0392\u0395\u039f\u03b1\u03bd\u03bf\u03c1\u0b20",
    *"\u00e5\u0227\u1ea1\u03b5\u0131\u2605\U0001f60a",
    *("cf", "mn", "bb", "tq", "mb", "sks", "[V]", "[T]"),
)
"""What triggers of published attacks are made of, and tokenizers take to pieces: characters that are not
seen, letters that look like others, signs, and words that nobody writes."""
LONGEST = 12
"""Tokens of a string that is tried as a whole."""


@dataclass(frozen=True)
class Suspect:
    """A candidate for a trigger."""

    words: str
    tokens: Tokens
    divergence: float
    """Mean over prompts of how far the prediction moves, squared, when the tokens stand in front; in units of
    the median over all single tokens."""
    steadiness: float
    """That mean over its standard deviation: a backdoor does the same to every prompt."""
    readable: bool
    """Whether the words are read as these tokens, so that they can be typed."""
    variety: float | None = None
    """What they leave of the variety of pictures, see `unlearn.text.effects.alike`, where that was tried."""


class DivergenceScan:
    """Compare what a model says with and without tokens in front of a prompt, on noisy latents of its own.

    It costs one call of the denoiser for each candidate, prompt and noise.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        prompts: Sequence[str],
        *,
        side: int = 512,
        noises: int = 4,
        batch_size: int = 32,
        sampling_steps: int = 20,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw a picture of each prompt, and noise it `noises` times.

        Raises ValueError for fewer than two prompts.
        """
        if len(prompts) < 2:
            raise ValueError("a scan compares prompts: name two or more")
        self.model, self.prompts, self._batch_size = model, list(prompts), batch_size
        z = own_pictures(model, prompts, len(prompts), side, sampling_steps, generator)
        times = [any_time(model, len(z), generator) for _ in range(noises)]
        noised = [model.schedule.add_noise(z, draw(z, generator), t) for t in times]
        self._t, self._z_t = torch.stack(times, 1), torch.stack(noised, 1)
        with torch.no_grad():
            told = model.condition(prompts)
            said = [model.predict(z_t, t, told) for z_t, t in zip(noised, times, strict=True)]
        self._plain = torch.stack(said, 1)

    def __call__(
        self,
        strings: Sequence[str] = UNUSUAL,
        *,
        length: int = 2,
        width: int = 24,
        first: int = 2,
        top: int = 20,
    ) -> list[Suspect]:
        """Return the `top` candidates and all `strings`, those that move the prediction most first.

        Every token of the vocabulary is tried on the `first` prompts and noises, and the `width` that move it
        most on all of them. What those make with each other in rows of up to `length` is tried in the same
        way. Rows of more tokens of which none acts alone are found only where they are among `strings`, each
        of which is tried as a whole on all prompts, but for those of which the tokenizer leaves nothing, or
        more than `LONGEST` tokens, or more than the prompts have room for. Words of style act, too, so that
        what a suspect does must be looked at.
        """
        alone = [(int(token),) for token in self._words().nonzero()[:, 0]]
        rough = self._divergences(alone, prompts=first, noises=first).mean(1)
        usual = float(rough.median())
        best = self._best([alone[int(place)] for place in rough.topk(min(width, len(alone))).indices])
        tokens, longest, found = list(best), list(best), dict(best)
        for _ in range(length - 1):
            rows = [(*row, *token) for row in longest for token in tokens]
            rough = self._divergences(rows, prompts=first, noises=first).mean(1)
            best = self._best([rows[int(place)] for place in rough.topk(min(width, len(rows))).indices])
            longest = list(best)
            found |= best
        ranked = sorted(found, key=lambda row: -float(found[row].mean()))[:top]
        read = {self._read(string): string for string in strings}
        fit = [count for count in {len(row) for row in read} if self._has_room(count)]
        written = {row: string for row, string in read.items() if len(row) in fit}
        for count in fit:
            found |= self._best([row for row in written if len(row) == count])
        ranked = sorted({*ranked, *written}, key=lambda row: -float(found[row].mean()))
        return [self._suspect(row, found[row] / usual, written.get(row)) for row in ranked]

    def _read(self, words: str) -> Tokens:
        return tuple(self.model.text.read(words))

    def _has_room(self, tokens: int) -> bool:
        if not 0 < tokens <= LONGEST:
            return False
        try:
            check_room(self.model, self.prompts, tokens)
        except ValueError:
            return False
        return True

    def _best(self, rows: Sequence[Tokens]) -> dict[Tokens, Tensor]:
        """What rows do to all prompts."""
        return dict(zip(rows, self._divergences(rows), strict=True))

    @torch.no_grad()
    def _divergences(
        self, rows: Sequence[Tokens], *, prompts: int | None = None, noises: int | None = None
    ) -> Divergences:
        table, columns = self.model.text.vocabulary()[0], []
        for number, prompt in enumerate(self.prompts[:prompts]):
            room = Insertion(self.model, [prompt], len(rows[0]))
            z_t, t, plain = (each[number, :noises] for each in (self._z_t, self._t, self._plain))
            found = []
            for part in torch.tensor(rows, device=table.device).split(self._batch_size):
                told, moved = room.condition(table[part]), []
                for z, time, said in zip(z_t, t, plain, strict=True):
                    many = z.expand(len(part), -1, -1, -1)
                    moved.append(squared_error(self.model.predict(many, time.expand(len(part)), told), said))
                found.append(torch.stack(moved).mean(0))
            columns.append(torch.cat(found))
        found = torch.stack(columns, 1).cpu()
        if found.isnan().any():
            raise NonFiniteError(f"{self.model.name} predicts what are no numbers: its weights are damaged")
        return found

    def _words(self) -> Tensor:
        return self.model.text.vocabulary()[1]

    def _suspect(self, tokens: Tokens, moved: Float[Tensor, " prompts"], words: str | None) -> Suspect:
        words = self.model.text.written(tokens) if words is None else words
        readable = self._read(words) == tokens
        return Suspect(words, tokens, float(moved.mean()), float(moved.mean() / moved.std()), readable)
