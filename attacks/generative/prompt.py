"""P2P: leave the picture and its noise alone, and change what the model is told it shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.ball import Images
from attacks.losses import Labels, Logits, Losses, cross_entropy
from attacks.objectives import normalised
from diffusion.latent import LatentDiffusion
from diffusion.model import Rows
from diffusion.pixel import PixelDiffusion
from diffusion.samplers import noised

Told = LatentDiffusion | PixelDiffusion
Found = Bool[Tensor, " batch"]


@dataclass(frozen=True)
class Prompted:
    """What P2P found for each image."""

    images: Images
    """The fooling picture of the smallest timestep, the nearest of several; the original where none fools."""
    fooled: Found
    timesteps: Int[Tensor, " batch"]
    """Where it was found; -1 where nothing was."""
    rows: Rows
    """The embeddings after the last round."""


@dataclass(frozen=True)
class PromptAttack:
    """Train the embeddings of a prompt's words until what the model sees is misclassified.

    Prompt2Perturb (Medghalchi et al., 2025, CVPR, arXiv 2412.09910). A picture is noised to a random
    one of the lowest timesteps, and the model's one-step estimate of the clean picture, told the trained
    prompt, is classified; everything but the embeddings is frozen. A model that is told a class has the
    class's embedding trained. There is no bound on the change: report distances.

    The release multiplies the cross-entropy by 1e10; here both gradients are brought to one scale, and
    `likeness` weighs the distance to the original.
    """

    below: int = 50
    """Timesteps are drawn from 0 up to this."""
    rounds: int = 500
    """At most; a picture stops counting when it has fooled at timestep 0."""
    rate: float = 5e-4
    """Learning rate of AdamW."""
    decay: float = 0.01
    """Its weight decay."""
    likeness: float = 1.0
    """Weight of the mean squared distance to the original, against 1 for the cross-entropy."""

    def __call__(
        self,
        model: Told,
        classifier: Callable[[Images], Logits],
        images: Images,
        labels: Labels,
        prompts: Sequence[str],
        *,
        generator: torch.Generator | None = None,
        callback: Callable[[int, Losses], None] | None = None,
    ) -> Prompted:
        """Return what was found.

        Args:
            model: told a text by one encoder, or a class.
            classifier: images of this size in [0, 1] to logits.
            images: float [batch, 3, height, width] in [0, 1].
            labels: true classes.
            prompts: what each picture shows, or is said to.
            generator: of times and noises, which all images share.
            callback: called as `callback(round, losses)` with the cross-entropies.

        Raises:
            ValueError: for prompts that are not one per image, no rounds, or timesteps outside the schedule.
        """
        if len(prompts) != len(images):
            raise ValueError(f"there is one prompt for each image; got {len(prompts)} for {len(images)}")
        if not 1 <= self.below <= len(model.schedule) or self.rounds < 1:
            raise ValueError(
                f"below lies between 1 and {len(model.schedule)} and there is at least one round; "
                f"got below={self.below}, rounds={self.rounds}"
            )
        images = images.detach()
        with torch.no_grad():
            z, start = model.encode(images), model.rows(prompts).float()
            own = _trained(model, prompts, start)
        leaf = start.clone().requires_grad_()
        adam = torch.optim.AdamW([leaf], lr=self.rate, weight_decay=self.decay)
        best = _Best(images)
        for number in range(self.rounds):
            t = int(torch.randint(self.below, (1,), generator=generator))
            noise = torch.randn(z[:1].shape, generator=generator, dtype=z.dtype).to(z)
            z_t = noised(model.schedule, z, noise, t)

            times = torch.full((len(z_t),), t, device=z_t.device)
            with torch.enable_grad():
                told = model.condition(prompts, rows=torch.where(own, leaf, start))
                made = model.decode(model.predict_clean(z_t, times, told))
                logits = classifier(made)
                losses = cross_entropy(logits, labels)
                apart = (made - images).square().flatten(1).mean(1)
            best.update(made.detach(), apart.detach(), logits.argmax(1) != labels, t)
            (fooling,) = torch.autograd.grad(losses.sum(), leaf, retain_graph=True)
            (leading_away,) = torch.autograd.grad(apart.sum(), leaf)
            # each at a mean magnitude of one, so that no constant has to bridge their scales
            leaf.grad = self.likeness * normalised(leading_away) - normalised(fooling)
            adam.step()
            if callback is not None:
                callback(number, losses.detach())
            if bool((best.timesteps == 0).all()):
                break
        return Prompted(best.images, best.timesteps >= 0, best.timesteps, leaf.detach())


def _trained(model: Told, prompts: Sequence[str], rows: Rows) -> Float[Tensor, "n length 1"]:
    """Which embeddings are trained: those of the words, not of marks and padding."""
    if isinstance(model, LatentDiffusion):
        return model.words(prompts)[..., None]
    return torch.ones_like(rows[..., :1], dtype=torch.bool)


class _Best:
    """For each image the fooling picture of the smallest timestep, and of these the nearest."""

    def __init__(self, images: Images) -> None:
        self.images = images.clone()
        self.timesteps = torch.full((len(images),), -1, device=images.device)
        self.distances = images.new_full((len(images),), torch.inf)

    def update(self, made: Images, apart: Losses, fooled: Found, t: int) -> None:
        earlier = (self.timesteps < 0) | (t < self.timesteps)
        better = fooled & (earlier | ((t == self.timesteps) & (apart < self.distances)))
        self.images = torch.where(better.view(-1, 1, 1, 1), made, self.images)
        self.timesteps = torch.where(better, t, self.timesteps)
        self.distances = torch.where(better, apart, self.distances)
