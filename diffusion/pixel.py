"""Diffusion models that work on pixels: DDPM and its descendants (Ho et al., 2020, arXiv 2006.11239)."""

from collections.abc import Sequence

import torch
from diffusers.models import UNet2DModel
from torch import nn

from diffusion.codec import side_of
from diffusion.model import Condition, DiffusionModel, Images, Prediction
from diffusion.schedule import Latents, NoiseSchedule, Timesteps


class PixelDiffusion(DiffusionModel):
    """A U-Net over pixels, `z = 2 images - 1`, unconditional or conditioned on a class.

    A network that also says a variance (Nichol and Dhariwal, 2021) has that half of its output left out. A
    class is a prompt made of its number, such as "207"; a model without classes ignores prompts.
    """

    def __init__(
        self, unet: UNet2DModel, schedule: NoiseSchedule, *, prediction: Prediction = "epsilon", name: str
    ) -> None:
        config = unet.config
        multiple = 2 ** (len(config["block_out_channels"]) - 1)
        super().__init__(
            schedule,
            prediction=prediction,
            name=name,
            multiple=multiple,
            latent_channels=config["in_channels"],
            comfortable=side_of(config["sample_size"], 256),
        )
        self.unet = unet
        self.classes: int = config["num_class_embeds"] or 0
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return self.unet

    def encode(self, images: Images) -> Latents:
        self.check_sides(images)
        return 2 * images - 1

    def decode(self, z: Latents, *, clamp: bool = True) -> Images:
        images = (z + 1) / 2
        return images.clamp(0, 1) if clamp else images

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Return the classes that `prompts` number; nothing for a model without classes.

        Raises ValueError if a prompt is not the number of a class that this model knows.
        """
        if not self.classes:
            return Condition()
        for prompt in prompts:
            if not (prompt.isdecimal() and int(prompt) < self.classes):
                raise ValueError(f"{self.name} expects a class from 0 to {self.classes - 1}; got {prompt!r}")
        return Condition(labels=torch.tensor([int(prompt) for prompt in prompts], device=self.device))

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        told = (condition or Condition()).expand(len(z_t))
        if self.classes and told.labels is None:
            raise ValueError(
                f"{self.name} needs a class: pass model.condition(['3']) for class 3, for example"
            )
        output = self.unet(z_t.to(self.dtype), t, class_labels=told.labels, return_dict=False)[0]
        return output[:, : self.latent_channels].to(z_t.dtype)
