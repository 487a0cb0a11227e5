"""Rectified-flow transformers: Stable Diffusion 3 and FLUX.1, behind the interface of every other model.

Their network says the velocity `noise - z` along the straight path `z_t = (1 - sigma) z + sigma noise`.
"""

from collections.abc import Sequence

import torch
from diffusers.models import FluxTransformer2DModel, SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.codec import LatentModel, Vae
from diffusion.model import Condition
from diffusion.schedule import Latents, NoiseSchedule, Timesteps
from diffusion.text import TextEncoder, penultimate

Packed = Float[Tensor, "batch tokens channels"]


class LatentFlow(LatentModel):
    """A transformer over two by two patches of latents; abstract: see the two classes below."""

    def __init__(
        self,
        vae: Vae,
        transformer: nn.Module,
        schedule: NoiseSchedule,
        *,
        texts: Sequence[TextEncoder],
        name: str,
        latent_side: int,
    ) -> None:
        super().__init__(vae, schedule, prediction="flow", name=name, latent_side=latent_side, patch=2)
        self.transformer, self.texts = transformer, nn.ModuleList(texts)

    @property
    def denoiser(self) -> nn.Module:
        return self.transformer


class StableDiffusion3(LatentFlow):
    """Stable Diffusion 3 and 3.5 (Esser et al., 2024, arXiv 2403.03206).

    It is told a text by two CLIP encoders and T5. The T5 encoder, by far the largest part, may be left out
    of `texts`: its tokens are then zeros.
    """

    def __init__(
        self,
        vae: Vae,
        transformer: SD3Transformer2DModel,
        schedule: NoiseSchedule,
        *,
        texts: Sequence[TextEncoder],
        name: str,
    ) -> None:
        side = transformer.config["sample_size"]
        super().__init__(vae, transformer, schedule, texts=texts, name=name, latent_side=side)
        self._text_width: int = transformer.config["joint_attention_dim"]
        self.freeze()

    def condition(self, prompts: Sequence[str]) -> Condition:
        hidden, pooled = penultimate(self.texts[:2], prompts)
        clip = torch.cat(hidden, dim=-1)
        clip = nn.functional.pad(clip, (0, self._text_width - clip.shape[-1]))
        if len(self.texts) == 3:
            t5 = self.texts[2](prompts).last_hidden_state
        else:
            t5 = clip.new_zeros(len(prompts), T5_TOKENS, self._text_width)
        return Condition(tokens=torch.cat([clip, t5.to(clip.dtype)], dim=1), pooled=torch.cat(pooled, dim=-1))

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        told, dtype = self.told(condition, len(z_t)), self.dtype
        assert told.tokens is not None
        assert told.pooled is not None
        sigma = self.schedule.at(t, z_t)[1].flatten()
        output = self.transformer(
            hidden_states=z_t.to(dtype),
            encoder_hidden_states=told.tokens.to(z_t.device, dtype),
            pooled_projections=told.pooled.to(z_t.device, dtype),
            timestep=1000 * sigma,
            return_dict=False,
        )[0]
        return output.to(z_t.dtype)


class Flux(LatentFlow):
    """FLUX.1 (Black Forest Labs, 2024), told a text by T5 and a summary of it by CLIP.

    FLUX.1-dev takes the strength of its guidance as an input: `guidance` is that number, 3.5 as in its
    demo; set it to 1 for what fine-tuning scripts train with. FLUX.1-schnell has no such input.
    """

    def __init__(
        self,
        vae: Vae,
        transformer: FluxTransformer2DModel,
        schedule: NoiseSchedule,
        *,
        texts: Sequence[TextEncoder],
        name: str,
    ) -> None:
        super().__init__(vae, transformer, schedule, texts=texts, name=name, latent_side=128)
        if transformer.config["in_channels"] != 4 * self.latent_channels:
            got, expected = transformer.config["in_channels"], 4 * self.latent_channels
            raise ValueError(
                f"{name}: FLUX variants with {got} input channels are not supported; expected {expected}"
            )
        self.guidance = 3.5
        self._guided: bool = transformer.config["guidance_embeds"]
        self.freeze()

    def condition(self, prompts: Sequence[str]) -> Condition:
        clip, t5 = self.texts
        return Condition(tokens=t5(prompts).last_hidden_state, pooled=clip(prompts).pooler_output)

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        told, dtype = self.told(condition, len(z_t)), self.dtype
        assert told.tokens is not None
        assert told.pooled is not None
        height, width = z_t.shape[-2:]
        output = self.transformer(
            hidden_states=pack(z_t).to(dtype),
            encoder_hidden_states=told.tokens.to(z_t.device, dtype),
            pooled_projections=told.pooled.to(z_t.device, dtype),
            timestep=self.schedule.at(t, z_t)[1].flatten(),  # the transformer multiplies by 1000
            img_ids=positions(height // 2, width // 2, z_t),
            txt_ids=z_t.new_zeros(told.tokens.shape[1], 3),
            guidance=z_t.new_full((len(z_t),), self.guidance) if self._guided else None,
            return_dict=False,
        )[0]
        return unpack(output, height, width).to(z_t.dtype)


T5_TOKENS = 256
"""Length of Stable Diffusion 3's T5 text, with or without the encoder."""


def pack(z: Latents) -> Packed:
    """Return each two by two patch of `z` as one token of four times the channels."""
    batch, channels, height, width = z.shape
    patches = z.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, (height // 2) * (width // 2), 4 * channels)


def unpack(tokens: Packed, height: int, width: int) -> Latents:
    """Undo `pack` for latents of `height` and `width`."""
    batch, _, channels = tokens.shape
    patches = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, channels // 4, height, width)


def positions(rows: int, columns: int, like: Tensor) -> Float[Tensor, "tokens 3"]:
    """Return the place of every image token, (0, row, column), for rotary embeddings."""
    places = like.new_zeros(rows, columns, 3)
    places[..., 1] = torch.arange(rows, device=like.device)[:, None]
    places[..., 2] = torch.arange(columns, device=like.device)
    return places.view(-1, 3)
