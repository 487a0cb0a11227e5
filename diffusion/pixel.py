"""Diffusion models that work on pixels: DDPM and its descendants (Ho et al., 2020, arXiv 2006.11239)."""

from collections.abc import Sequence
from typing import cast

import torch
from diffusers.models import UNet2DModel
from torch import nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diffusion.codec import side_of
from diffusion.features import replaced_output
from diffusion.model import Condition, DiffusionModel, Images, Labels, Prediction, Rows
from diffusion.schedule import Latents, NoiseSchedule, Timesteps


class PixelDiffusion(DiffusionModel):
    """A U-Net over pixels, `z = 2 images - 1`, unconditional or conditioned on a class.

    A network that also says a variance (Nichol and Dhariwal, 2021) has that half of its output left out. A
    class is a prompt made of its number, such as "207", or of its name in `labels`; a model without classes
    ignores prompts. With one class embedding more than `labels`, the last stands for no class and the empty
    prompt means it.

    `patch = 2` folds every two by two pixels into the channels of `z`. That only reorders entries, so noise
    and distances are those of the pixels, and the network works at half the side.
    """

    fixed_size = True

    def __init__(
        self,
        unet: UNet2DModel,
        schedule: NoiseSchedule,
        *,
        prediction: Prediction = "epsilon",
        name: str,
        labels: Sequence[str] = (),
        patch: int = 1,
    ) -> None:
        config = unet.config
        super().__init__(
            schedule,
            prediction=prediction,
            name=name,
            multiple=patch * 2 ** (len(config["block_out_channels"]) - 1),
            latent_channels=config["in_channels"],
            comfortable=patch * side_of(config["sample_size"], 256 // patch),
        )
        self.unet = unet
        self.image_channels = self.latent_channels // patch**2
        self.labels, self.patch = tuple(labels), patch
        embeddings: int = config["num_class_embeds"] or 0
        self.unconditional: int | None = len(labels) if labels and embeddings == len(labels) + 1 else None
        self.classes = embeddings if self.unconditional is None else self.unconditional
        if labels and self.classes != len(labels):
            raise ValueError(f"{name} embeds {embeddings} classes; got {len(labels)} labels")
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return self.unet

    def encode(self, images: Images) -> Latents:
        self.check_sides(images)
        return pixel_unshuffle(2 * images - 1, self.patch)

    def decode(self, z: Latents, *, clamp: bool = True) -> Images:
        images = (pixel_shuffle(z, self.patch) + 1) / 2
        return images.clamp(0, 1) if clamp else images

    def rows(self, prompts: Sequence[str]) -> Rows:
        if not self.classes:
            return super().rows(prompts)
        return self._table(self._numbers(prompts))[:, None]

    @property
    def _table(self) -> nn.Module:
        return cast(nn.Module, self.unet.class_embedding)

    def condition(self, prompts: Sequence[str], rows: Rows | None = None) -> Condition:
        """Return the classes that `prompts` name or number; nothing for a model without classes.

        `rows`, one for each prompt, take the place of the classes' embeddings.

        Raises ValueError if a prompt is not the name or number of a class that this model knows.
        """
        if not self.classes:
            return Condition()
        return Condition(labels=self._numbers(prompts) if rows is None else rows[:, 0])

    def _numbers(self, prompts: Sequence[str]) -> Labels:
        return torch.tensor([self._class(prompt) for prompt in prompts], device=self.device)

    def _class(self, prompt: str) -> int:
        if prompt == "" and self.unconditional is not None:
            return self.unconditional
        if prompt in self.labels:
            return self.labels.index(prompt)
        if prompt.isdecimal() and int(prompt) < self.classes:
            return int(prompt)
        names = f" or one of {', '.join(self.labels)}" if self.labels else ""
        raise ValueError(f"{self.name} expects a class from 0 to {self.classes - 1}{names}; got {prompt!r}")

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        told = condition or Condition()
        if self.classes and told.labels is None:
            if self.unconditional is None:
                raise ValueError(
                    f"{self.name} needs a class: pass model.condition(['3']) for class 3, for example"
                )
            told = Condition(labels=torch.tensor([self.unconditional], device=z_t.device))
        labels = told.expand(len(z_t)).labels
        if labels is not None and labels.is_floating_point():
            with replaced_output(self._table, labels):
                return self._predict(z_t, t, torch.zeros(len(z_t), dtype=torch.long, device=z_t.device))
        return self._predict(z_t, t, labels)

    def _predict(self, z_t: Latents, t: Timesteps, labels: Labels | None) -> Latents:
        output = self.unet(z_t.to(self.dtype), t, class_labels=labels, return_dict=False)[0]
        return output[:, : self.latent_channels].to(z_t.dtype)
