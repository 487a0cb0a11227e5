"""Threats that train a model on a set of pictures and then make new ones: imitation, not editing."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from diffusion.model import Condition, DiffusionModel
from diffusion.samplers import ddim
from diffusion.schedule import Latents
from imaging.picture import Images
from imaging.tiles import crop_padding, pad_to_multiple
from protect.threats.threat import Seeds, Threat


class Learned(NamedTuple):
    """What training leaves: a model, and how prompts are put to it."""

    model: DiffusionModel
    condition: Callable[[Sequence[str]], Condition]


@dataclass(frozen=True)
class Learning(Threat):
    """Learn a set of pictures under a word, then make pictures of that word; abstract.

    Called with images of one size it returns `samples` new ones for each seed, learning anew for each.
    Training and sampling draw on the CPU from the seed alone. Whatever is learned is thrown away.
    """

    prompt: str = "a painting of sks"
    """What samples are asked for, with the word that was learned; not the caption of training."""
    template: str = "a photo of sks"
    """Caption of the pictures in training."""
    learning_steps: int = 1000
    """Updates."""
    learning_rate: float = 1e-4
    """Of AdamW."""
    batch_size: int = 1
    """Pictures per update."""
    samples: int = 4
    """How many pictures are made."""

    def __call__(self, model: DiffusionModel, images: Images, *, seed: Seeds) -> Images:
        height, width = images.shape[-2:]
        seeds = [seed] if isinstance(seed, int) else seed
        z = self.latents(model, images)
        made = [self.imagined(self.learn(model, z, seed=one), z, seed=one) for one in seeds]
        return crop_padding(torch.cat(made), height, width).to(images)

    @torch.no_grad()
    def latents(self, model: DiffusionModel, images: Images) -> Latents:
        """Return what `learn` takes of images. Raises ValueError for a model that cannot do this."""
        self.check(model)
        return model.encode(pad_to_multiple(images.to(model.device), model.multiple))

    @abstractmethod
    def learn(self, model: DiffusionModel, z: Latents, *, seed: int) -> Learned:
        """Train on latents of the pictures; `model` itself stays as it is."""

    @torch.no_grad()
    def imagined(self, learned: Learned, like: Latents, *, seed: int) -> Images:
        """Return pictures of the learned word, as large as those that were learned."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((self.samples, *like.shape[1:]), generator=generator).to(like)
        timesteps = learned.model.schedule.timesteps(self.steps, size=(like.shape[-2], like.shape[-1]))
        condition = learned.condition([self.prompt])
        z = ddim(learned.model, noise, condition, timesteps=timesteps, guidance=self.guidance)
        return learned.model.decode(z)
