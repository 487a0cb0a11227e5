"""DiffAttack of Chen et al.: change what a picture was made from, so that it stays a picture.

Not the attack of that name on purifiers (Kang et al.), which is `attacks.adaptive.deviated`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attacks.ball import Images
from attacks.losses import Labels, Logits, Losses, cross_entropy
from diffusion.attention import AttentionMap, recorded_attention
from diffusion.inversion import inverted, null_text
from diffusion.latent import LatentDiffusion
from diffusion.model import Condition, DiffusionModel
from diffusion.samplers import Step, ddim_mean, denoise, steps_of
from diffusion.schedule import Latents

Classifier = Callable[[Images], Logits]
Attention = Float[Tensor, "batch queries words"]
Words = Bool[Tensor, "batch words"]
Selves = list[Tensor]
"""Self-attention of each layer."""


@dataclass(frozen=True)
class LatentDiffAttack:
    """Attack the noisy latent of a picture (Chen et al., 2024, TPAMI, arXiv 2305.08192).

    A picture is inverted to `kept` of `steps` steps into the noise, and the empty prompt's embedding fitted
    so that guided steps lead back to it. Then that noisy latent is moved such that its picture is
    misclassified, while the attention to the words that name it is spread evenly ("distraction") and the
    attention of the picture to itself stays as it was ("structure"). There is no bound on the change: report
    distances.

    With a model that is told no words there is nothing to distract from. Gradients run through one step at a
    time, whose graph is rebuilt in the backward pass.
    """

    steps: int = 20
    """DDIM steps of the whole schedule."""
    kept: int = 5
    """How many of them the picture is taken back and made again."""
    guidance: float = 2.5
    """Classifier-free guidance on the way to the picture."""
    iterations: int = 30
    """Steps of AdamW on the latent."""
    rate: float = 0.01
    """Its learning rate."""
    attack: float = 10.0
    """Weight of the cross-entropy at the label, which grows."""
    distraction: float = 10_000.0
    """Weight of the variance of the attention to the label's words, which shrinks."""
    structure: float = 100.0
    """Weight of the change of self-attention."""
    mask: Literal["none", "soft", "hard"] = "none"
    """Blend with the original by the attention to the label: changes less, transfers less."""
    sharpness: float = 1.0
    """What logits are multiplied by; 0.1 in the paper for fine-grained classes."""

    def __call__(
        self,
        model: DiffusionModel,
        classifier: Classifier,
        images: Images,
        labels: Labels,
        prompts: Sequence[str],
        callback: Callable[[int, Images, Losses], None] | None = None,
    ) -> Images:
        """Return adversarial images.

        Args:
            model: told a text or a class; the surrogate that makes the picture.
            classifier: images of this size in [0, 1] to logits; white box.
            images: float [batch, 3, height, width] in [0, 1], sides multiples of the model's.
            labels: true classes.
            prompts: a name of each label, as the model knows it.
            callback: called as `callback(iteration, images, losses)` with the cross-entropies.

        Returns:
            Images, detached. Each depends on its own picture alone.

        Raises:
            ValueError: for settings out of range, prompts that are not one per image, or a mask with a model
                that is told no words.
        """
        if not 1 <= self.kept <= self.steps:
            raise ValueError(f"of {self.steps} steps 1 to {self.steps} can be kept; got {self.kept}")
        if len(prompts) != len(images):
            raise ValueError(f"there is one prompt for each image; got {len(prompts)} for {len(images)}")
        images = images.detach()
        with torch.no_grad():
            z, told = model.encode(images), model.condition(prompts)
            timesteps = model.schedule.timesteps(self.steps, size=(z.shape[-2], z.shape[-1]))[-self.kept :]
            states = inverted(model, z, timesteps=timesteps)
        blanks = null_text(model, states, told, timesteps=timesteps, guidance=self.guidance)
        walk = _Walk(model, told, blanks, timesteps, self.guidance, _words(model, prompts), images)
        with torch.no_grad():
            _, seen, selves = walk.look(states[0])
            mask = None
            if self.mask != "none":
                if seen is None:
                    raise ValueError(
                        f"mask {self.mask!r} is made of the attention to words, and {model.name} is told "
                        "none; leave it at 'none'"
                    )
                mask = walk.mask(seen, images)
                mask = (mask > 0.5).to(mask) if self.mask == "hard" else mask
        z_t = states[0].clone().requires_grad_()
        adam = torch.optim.AdamW([z_t], lr=self.rate)
        for iteration in range(self.iterations):
            with torch.enable_grad():
                end, seen, changed = walk.compare(z_t, selves)
                made = _blended(model.decode(end), images, mask)
                fooled = cross_entropy(self.sharpness * classifier(made), labels)
                loss = self.structure * changed - self.attack * fooled
                if seen is not None:
                    loss = loss + self.distraction * variance(seen, walk.words)
            (z_t.grad,) = torch.autograd.grad(loss.sum(), z_t)
            adam.step()
            if callback is not None:
                callback(iteration, made.detach(), fooled.detach())
        with torch.no_grad():
            return _blended(model.decode(walk.look(z_t.detach())[0]), images, mask)


class _Walk:
    """The guided steps from a noisy latent to a picture, and what is attended to on the way."""

    def __init__(
        self,
        model: DiffusionModel,
        told: Condition,
        blanks: Sequence[Condition],
        timesteps: Sequence[int],
        guidance: float,
        words: Words | None,
        images: Images,
    ) -> None:
        self.model, self.told, self.blanks, self.guidance, self.words = model, told, blanks, guidance, words
        self.steps = list(steps_of(model.schedule, timesteps, model.schedule.final))
        height, width = images.shape[-2:]
        # The paper's sizes: words are watched on the coarsest map of Stable Diffusion that has blocks on the
        # way down and up, structure on maps no finer than a sixteenth, or 8 x 8 where pictures are small.
        self.coarse = (height // 32) * (width // 32)
        self.fine = max((height // 16) * (width // 16), 64)

    def look(self, z_t: Latents) -> tuple[Latents, Attention | None, list[Selves]]:
        """Return the latent at the end, the mean attention to words, and each step's self-attention."""
        seen, selves = [], []
        for step in self.steps:
            z_t, looks, own = self._step(z_t, step)
            seen.append(looks)
            selves.append(own)
        return z_t, _mean(seen), selves

    def compare(self, z_t: Latents, clean: Sequence[Selves]) -> tuple[Latents, Attention | None, Losses]:
        """Return the same with, in place of the last, how far self-attention is from `clean`."""
        seen, changed = [], z_t.new_zeros(len(z_t))
        for step, theirs in zip(self.steps, clean, strict=True):
            z_t, looks, apart = checkpoint(self._compared, z_t, step, theirs, use_reentrant=False)
            seen.append(looks)
            changed = changed + apart
        return z_t, _mean(seen), changed

    def _compared(self, z_t: Latents, step: Step, clean: Selves) -> tuple[Latents, Attention | None, Losses]:
        arrived, looks, own = self._step(z_t, step)
        apart = arrived.new_zeros(len(arrived))
        for one, other in zip(own, clean, strict=True):
            apart = apart + (one - other).square().flatten(1).mean(1)
        return arrived, looks, apart

    def _step(self, z_t: Latents, step: Step) -> tuple[Latents, Attention | None, Selves]:
        with recorded_attention(self.model.denoiser) as maps:
            seen = denoise(self.model, z_t, step, self.told, None, 1.0, clip=False)
        if self.guidance != 1:
            blank = denoise(self.model, z_t, step, self.blanks[step.number], None, 1.0, clip=False)
            seen = (
                torch.lerp(blank[0], seen[0], self.guidance),
                torch.lerp(blank[1], seen[1], self.guidance),
            )
        own = [each.weights for each in maps if not each.cross and each.queries <= self.fine]
        return ddim_mean(step, *seen), self._looks(maps), own

    def _looks(self, maps: Sequence[AttentionMap]) -> Attention | None:
        """Return the attention to tokens on the coarse maps of the way down and up, heads averaged."""
        cross = [each for each in maps if each.cross and not each.layer.startswith("mid")]
        if not cross or self.words is None:
            return None
        nearest = min((each.queries for each in cross), key=lambda queries: abs(queries - self.coarse))
        return torch.stack([each.weights.mean(1) for each in cross if each.queries == nearest]).mean(0)

    def mask(self, seen: Attention, images: Images) -> Float[Tensor, "batch 1 height width"]:
        """Return where the words are looked for, from 0 to 1."""
        assert self.words is not None
        weights = self.words[:, None].to(seen)
        looked = (seen * weights).sum(2) / weights.sum(2).clamp_min(1)
        looked = looked / looked.amax(1, keepdim=True).clamp_min(1e-12)
        height, width = images.shape[-2:]
        rows = round((looked.shape[1] * height / width) ** 0.5)
        return torch.nn.functional.interpolate(
            looked.view(len(looked), 1, rows, -1), size=(height, width), mode="bilinear"
        )


def _mean(seen: Sequence[Attention | None]) -> Attention | None:
    maps = [each for each in seen if each is not None]
    return torch.stack(maps).mean(0) if maps else None


def variance(seen: Attention, words: Words | None) -> Losses:
    """Return the variance of each picture's attention over places and its own words."""
    assert words is not None
    weights = words[:, None].to(seen).expand_as(seen)
    count = weights.flatten(1).sum(1).clamp_min(2)
    mean = (seen * weights).flatten(1).sum(1) / count
    away = (seen - mean[:, None, None]).square() * weights
    return away.flatten(1).sum(1) / (count - 1)


def _words(model: DiffusionModel, prompts: Sequence[str]) -> Words | None:
    return model.words(prompts) if isinstance(model, LatentDiffusion) else None


def _blended(made: Images, images: Images, mask: Tensor | None) -> Images:
    return made if mask is None else made * mask + images * (1 - mask)
