"""What is left of a backdoor in a text-to-image model, and what its removal has cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attacks import NonFiniteError
from diffusion.features import kernel_distance, summaries
from diffusion.finetune import rows_of
from diffusion.latent import LatentDiffusion
from diffusion.losses import denoising_loss
from diffusion.samplers import ddim, draw
from diffusion.schedule import Latents
from unlearn.measures import Rate
from unlearn.text.effects import Verdict, rms
from unlearn.text.triggers import PromptTrigger
from unlearn.triggers import Images

ALIGNMENT_TIMES = (100, 300, 500, 700)
FEATURES_AT = 200
"""Times, of 1000."""


@dataclass(frozen=True)
class Drawn:
    """What a model draws of clean and of triggered prompts, from the same noise."""

    clean: Latents
    triggered: Latents


class Studio:
    """Draws prompts; the noise that a picture starts from is its row's, whatever is said and by whom."""

    def __init__(
        self,
        model: LatentDiffusion,
        count: int,
        *,
        side: int = 512,
        steps: int = 20,
        guidance: float = 1.0,
        seed: int = 0,
        batch_size: int = 8,
    ) -> None:
        across = side // model.codec.stride
        like = torch.empty(count, model.latent_channels, across, across, device=model.device)
        self._noise = draw(like, torch.Generator().manual_seed(seed))
        self._timesteps = model.schedule.timesteps(steps, size=(across, across))
        self._guidance, self._batch_size = guidance, batch_size

    @torch.no_grad()
    def draw(
        self, model: LatentDiffusion, prompts: Sequence[str], rows: Sequence[int] | None = None
    ) -> Latents:
        """Return latents of prompts, which stand in the given rows; in the first ones without."""
        noise = self._noise[list(range(len(prompts)) if rows is None else rows)]
        told = model.condition(list(prompts))
        return torch.cat(
            [
                ddim(
                    model,
                    noise[part],
                    rows_of(told, part),
                    timesteps=self._timesteps,
                    guidance=self._guidance,
                )
                for part in torch.arange(len(prompts), device=noise.device).split(self._batch_size)
            ]
        )

    def both(self, model: LatentDiffusion, prompts: Sequence[str], trigger: PromptTrigger) -> Drawn:
        """Draw prompts without and with a trigger."""
        return Drawn(self.draw(model, prompts), self.draw(model, trigger(prompts)))


@dataclass(frozen=True)
class Outcome:
    """A model beside the untouched one, on prompts that no removal has seen."""

    triggered: Rate
    """Pictures of triggered prompts that show the backdoor: its success."""
    corrected: float
    """The same without the judge's own errors."""
    clean: Rate
    """Pictures of clean prompts that are taken to show it."""
    agreement: Rate
    """Pictures of triggered prompts that do not show it, and are close to what the untouched model draws of
    the clean one: nearer than half the usual distance of two pictures. Success can fall because nothing is
    drawn at all; then this does not rise."""
    drift: float
    """How far pictures of clean prompts have moved, in 1/255: the root of the mean square."""
    distance: float
    """Of pictures of clean prompts to the untouched model's: the squared maximum mean discrepancy, with KID's
    kernel, of what the middle of the untouched denoiser says. 0 is none; it may be below."""
    alignment: float
    """How much better the untouched model denoises pictures of clean prompts when it is told their own prompt
    and not another's, in per cent of the loss."""


class Comparison:
    """Compares what a model draws with what the untouched one drew of the same prompts and noise."""

    def __init__(
        self, untouched: LatentDiffusion, prompts: Sequence[str], before: Drawn, judge: Verdict
    ) -> None:
        """Look at what was drawn before.

        Args:
            untouched: the model with the backdoor; it knows clean prompts.
            prompts: what was drawn.
            before: by the untouched model.
            judge: of the effect.

        Raises ValueError for fewer than two prompts.
        """
        if len(prompts) < 2:
            raise ValueError("an outcome needs two prompts or more")
        self._model, self._prompts, self._judge = untouched, prompts, judge
        self._old = decoded(untouched, before.clean)
        self._usual = rms(self._old, self._old.roll(1, 0)).mean()
        self._features = summaries(untouched, before.clean, time=FEATURES_AT)

    def __call__(self, after: Drawn) -> Outcome:
        """Return the outcome of a removal, given what its result has drawn."""
        old, rows = self._old, range(len(self._prompts))
        clean, marked = (decoded(self._model, z) for z in (after.clean, after.triggered))
        hits = self._judge(marked, rows)
        rate = Rate.of_hits(hits)
        return Outcome(
            rate,
            self._judge.corrected(rate),
            Rate.of_hits(self._judge(clean, rows)),
            Rate.of_hits(~hits & (rms(marked, old) < self._usual / 2)),
            255 * float((clean - old).square().mean().sqrt()),
            kernel_distance(summaries(self._model, after.clean, time=FEATURES_AT), self._features),
            alignment(self._model, after.clean, self._prompts),
        )


@torch.no_grad()
def encoded(model: LatentDiffusion, images: Images) -> Latents:
    """Return the latents of pictures, a few at a time."""
    return torch.cat([model.encode(part.to(model.device)) for part in images.split(8)])


@torch.no_grad()
def decoded(model: LatentDiffusion, z: Latents) -> Images:
    """Return the pictures of latents, a few at a time. Raises NonFiniteError if a pixel is no number."""
    images = torch.cat([model.decode(part) for part in z.split(8)]).float().cpu()
    if images.isnan().any():
        raise NonFiniteError(f"{model.name} drew what are no numbers: its weights are damaged")
    return images


@torch.no_grad()
def alignment(model: LatentDiffusion, z: Latents, prompts: Sequence[str]) -> float:
    """Return by how many per cent the loss of denoising latents is lower under their own prompts than under
    each other's, at fixed times and noises."""
    own = model.condition(prompts)
    generator, losses = torch.Generator().manual_seed(0), ([], [])
    places = torch.arange(len(z), device=z.device)
    for time in ALIGNMENT_TIMES:
        t = torch.full((len(z),), time * len(model.schedule) // 1000, device=z.device)
        noise = draw(z, generator)
        for told, found in ((places, losses[0]), (places.roll(1), losses[1])):
            condition = rows_of(own, told)
            parts = [
                denoising_loss(model, z[part], noise[part], t[part], rows_of(condition, part))
                for part in places.split(8)
            ]
            found.append(torch.cat(parts).mean())
    mine, others = (float(torch.stack(found).mean()) for found in losses)
    return 100 * (others - mine) / others
