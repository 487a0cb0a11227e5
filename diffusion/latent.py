"""Latent diffusion with a U-Net: Stable Diffusion 1, 2 and XL, their inpainting and editing variants."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Self, cast

import torch
from diffusers.models import UNet2DConditionModel
from jaxtyping import Bool
from torch import Tensor, nn

from diffusion.codec import LatentModel, Vae, side_of
from diffusion.model import Condition, Images, Masks, NoDenoiserError, Prediction, Rows
from diffusion.schedule import Latents, NoiseSchedule, Timesteps
from diffusion.text import TextEncoder, empty_rows, penultimate


class LatentDiffusion(LatentModel):
    """A U-Net over the latents of an autoencoder, told a text (Rombach et al., 2022, arXiv 2112.10752).

    One text encoder makes a Stable Diffusion 1 or 2; a U-Net whose configuration says `text_time` makes an
    SDXL (Podell et al., 2023, arXiv 2307.01952), told the text by two encoders and the size of the image. A
    U-Net with more input channels than the latents have expects a condition from `inpainting` or `editing`.

    `zero_empty` replaces the embeddings of empty prompts with zeros, as SDXL was trained.
    """

    def __init__(
        self,
        vae: Vae,
        unet: UNet2DConditionModel,
        schedule: NoiseSchedule,
        *,
        texts: Sequence[TextEncoder],
        prediction: Prediction = "epsilon",
        name: str,
        zero_empty: bool = True,
    ) -> None:
        config = unet.config
        told = config["addition_embed_type"]
        if told not in (None, "text_time"):
            raise ValueError(f"{name}: U-Nets told {told!r} beside text are not supported")
        side = side_of(config["sample_size"], 64)
        super().__init__(vae, schedule, prediction=prediction, name=name, latent_side=side)
        self.unet, self.texts = unet, nn.ModuleList(texts)
        self.extra_channels: int = config["in_channels"] - self.latent_channels
        self.inpaints = self.extra_channels == self.latent_channels + 1
        self._told_size, self._zero_empty = told == "text_time", zero_empty
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return self.unet

    def rows(self, prompts: Sequence[str]) -> Rows:
        if self._told_size:
            raise ValueError(f"{self.name} reads prompts with two encoders: take a model with one")
        return self.text.rows(prompts)

    def words(self, prompts: Sequence[str]) -> Bool[Tensor, "n length"]:
        """Return which of a condition's tokens stand for the prompts themselves."""
        return self.text.words(prompts)

    @property
    def text(self) -> TextEncoder:
        """The tokenizer and encoder of prompts; the first of them where there are two."""
        return cast(TextEncoder, self.texts[0])

    def with_own_texts(self) -> Self:
        """Return a model with text encoders of its own; everything else, the denoiser too, is shared."""
        shared = [module for module in self.children() if module is not self.texts]
        tokenizers = [cast(TextEncoder, text).tokenizer for text in self.texts]
        twin = copy.deepcopy(self, {id(each): each for each in [*shared, *tokenizers, self.schedule]})
        twin._unprompted = None  # what the encoder says of the empty prompt may become another
        return twin

    def condition(self, prompts: Sequence[str], rows: Rows | None = None) -> Condition:
        """Return what the denoiser is told; `rows` as in `DiffusionModel.rows`."""
        if not self._told_size:
            return Condition(tokens=self.text(prompts, rows=rows).last_hidden_state)
        hidden, pooled = penultimate(self.texts, prompts)
        tokens, summary = torch.cat(hidden, dim=-1), pooled[-1]
        if self._zero_empty:
            empty = empty_rows(prompts, tokens)
            tokens = tokens.masked_fill(empty[:, None, None], 0)
            summary = summary.masked_fill(empty[:, None], 0)
        return Condition(tokens=tokens, pooled=summary)

    def inpainting(self, condition: Condition, images: Images, mask: Masks) -> Condition:
        """Return `condition` with the mask and the latent of the visible part, as further channels.

        `mask` is 1 where the picture will be repainted; the model sees grey there. Differentiable with
        respect to `images`.

        Raises ValueError for a model that is not made for inpainting.
        """
        if not self.inpaints:
            return super().inpainting(condition, images, mask)
        repaint = mask >= 0.5
        visible = self.encode(torch.where(repaint, 0.5, images))
        hole = nn.functional.interpolate(repaint.to(visible.dtype), size=visible.shape[-2:])  # nearest
        return replace(condition, concat=torch.cat([hole.expand(len(visible), -1, -1, -1), visible], dim=1))

    def editing(self, condition: Condition, images: Images) -> Condition:
        """Return `condition` with the image that an instruction-following U-Net edits, its latent unscaled.

        This is InstructPix2Pix (Brooks et al., 2023, arXiv 2211.09800). Differentiable with respect to
        `images`.

        Raises ValueError for a model that is not made for it.
        """
        if self.extra_channels != self.latent_channels:
            raise ValueError(
                f"{self.name} does not follow instructions: load one that does, such as 'instruct-pix2pix'"
            )
        self.check_sides(images)
        return replace(condition, concat=self.codec.mean(images))

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        told, dtype = self.told(condition, len(z_t)), self.dtype
        sample = z_t if told.concat is None else torch.cat([z_t, told.concat], dim=1)
        if sample.shape[1] != self.latent_channels + self.extra_channels:
            raise ValueError(self._wrong_channels(sample.shape[1]))
        assert told.tokens is not None
        added = None
        if self._told_size:
            assert told.pooled is not None
            added = {"text_embeds": told.pooled.to(z_t.device, dtype), "time_ids": self._time_ids(z_t)}
        output = self.unet(
            sample.to(dtype), t, told.tokens.to(z_t.device, dtype), added_cond_kwargs=added, return_dict=False
        )[0]
        return output.to(z_t.dtype)

    def _time_ids(self, z_t: Latents) -> Tensor:
        """SDXL's original size, crop corner and target size: the picture is whole and as large as it is."""
        ids = z_t.new_zeros(len(z_t), 6)
        ids[:, 0::4] = z_t.shape[-2] * self.codec.stride
        ids[:, 1::4] = z_t.shape[-1] * self.codec.stride
        return ids

    def _wrong_channels(self, got: int) -> str:
        expected = self.latent_channels + self.extra_channels
        if self.inpaints:
            remedy = "pass model.inpainting(condition, images, mask) as the condition"
        elif self.extra_channels:
            remedy = "pass model.editing(condition, images) as the condition"
        else:
            remedy = "drop the condition's concat"
        return f"the U-Net of {self.name} takes {expected} channels; got {got}: {remedy}"


class Autoencoder(LatentModel):
    """An autoencoder alone: everything that needs no denoiser works, and `predict` raises NoDenoiserError."""

    has_denoiser = False

    def __init__(self, vae: Vae, *, name: str) -> None:
        # nothing is denoised, so neither the schedule nor the prediction matters
        super().__init__(
            vae, NoiseSchedule.scaled_linear(), prediction="epsilon", name=name, latent_side=AUTOENCODER_SIDE
        )
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        raise NoDenoiserError(self._no_denoiser())

    def condition(self, prompts: Sequence[str]) -> Condition:
        return Condition()

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        raise NoDenoiserError(self._no_denoiser())

    def _no_denoiser(self) -> str:
        return (
            f"{self.name} is an autoencoder without a denoiser: load a full model such as 'builtin' or 'sd15'"
        )


AUTOENCODER_SIDE = 128
"""Autoencoders are convolutional and like any size; larger latents than this cost too much memory."""
