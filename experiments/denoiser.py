"""Train the built-in denoisers: a text-conditioned latent U-Net, then its inpainting sibling."""

from pathlib import Path

import lightning as L
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusion.codec import Codec, LatentModel
from diffusion.load import load
from experiments.masks import random_masks
from experiments.schedules import cosine_after_warmup

Latents = Float[Tensor, "batch channels h w"]

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


class DenoiserTraining(L.LightningModule):
    """Velocity prediction (Salimans and Ho, 2022, arXiv 2202.00512) on the latents of a frozen autoencoder.

    Velocity, because its error is comparable at every noise level: the denoiser stays below the best linear
    guess even where almost nothing of the picture is left. With `inpainting`, the U-Net also sees a mask and
    the latent of the visible part, starts from the weights of the checkpoint `start_from`, and the text
    encoder stays as it was trained there.
    """

    def __init__(
        self,
        autoencoder: str,
        tokenizer: str,
        block_out_channels: tuple[int, ...] = (40, 80, 120),
        layers_per_block: int = 1,
        text_width: int = 128,
        text_layers: int = 2,
        learning_rate: float = 1e-3,
        warmup_steps: int = 100,
        inpainting: bool = False,
        start_from: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        found = load(autoencoder, denoiser=False)
        if not isinstance(found, LatentModel):
            raise ValueError(f"{autoencoder} is no autoencoder: name a folder of one, or a TAESD pair")
        # In a list, so that the frozen autoencoder is neither a parameter nor part of the checkpoint.
        self._codec = [found.codec.to(memory_format=torch.channels_last)]
        self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
        self.text_encoder = self._build_text_encoder(text_width, text_layers)
        channels = self.codec.channels
        self.unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=2 * channels + 1 if inpainting else channels,
            out_channels=channels,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            # No attention at the full latent resolution: it would dominate the cost of a large picture.
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (len(block_out_channels) - 1)),
            up_block_types=(*("CrossAttnUpBlock2D",) * (len(block_out_channels) - 1), "UpBlock2D"),
            cross_attention_dim=text_width,
            attention_head_dim=4,
            norm_num_groups=8,
        ).to(memory_format=torch.channels_last)
        self.register_buffer("alphas_cumprod", DDIMScheduler(**SCHEDULE).alphas_cumprod, persistent=False)
        if start_from is not None:
            self._start_from(Path(start_from))

    def _build_text_encoder(self, width: int, layers: int) -> CLIPTextModel:
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=width,
                intermediate_size=4 * width,
                projection_dim=width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                max_position_embeddings=self.tokenizer.model_max_length,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )

    def _start_from(self, checkpoint: Path) -> None:
        """Copy a trained text-to-image denoiser; the new input channels start at zero, so that nothing is
        lost."""
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        own = self.state_dict()
        widened = torch.zeros_like(own["unet.conv_in.weight"])
        widened[:, : state["unet.conv_in.weight"].shape[1]] = state["unet.conv_in.weight"]
        self.load_state_dict({**state, "unet.conv_in.weight": widened})
        self.text_encoder.requires_grad_(False)

    @property
    def codec(self) -> Codec:
        """The frozen autoencoder."""
        return self._codec[0]

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Latents:
        """The scaled posterior mean of images in [0,1]."""
        x = images.to(memory_format=torch.channels_last)
        with torch.no_grad():
            return self.codec.to(images.device).encode(x).float()

    def tokens(self, captions: list[str]) -> Float[Tensor, "batch length width"]:
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(ids.to(self.device)).last_hidden_state

    def extra_channels(self, images: Tensor, masks: Float[Tensor, "batch 1 height width"]) -> Latents:
        """The mask at latent size and the latent of the picture with the masked part set to mid-grey."""
        visible = torch.where(masks > 0.5, torch.full_like(images, 0.5), images)
        z = self.encode(visible)
        return torch.cat([torch.nn.functional.interpolate(masks, size=z.shape[-2:]), z], 1)

    def losses(
        self,
        z: Latents,
        t: Int[Tensor, " batch"],
        noise: Latents,
        captions: list[str],
        extra: Latents | None = None,
    ) -> Float[Tensor, " batch"]:
        """Mean squared velocity error of each picture."""
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        z_t = alpha * z + sigma * noise
        inputs = z_t if extra is None else torch.cat([z_t, extra], 1)
        velocity = self.unet(
            inputs.to(memory_format=torch.channels_last), t, self.tokens(captions)
        ).sample.float()
        return (velocity - (alpha * noise - sigma * z)).square().flatten(1).mean(1)

    def _batch_losses(self, batch: dict, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        images = batch["image"]
        z = self.encode(images)
        extra = None
        if self.hparams.inpainting:
            masks = random_masks(len(images), images.shape[-1], generator=generator).to(images)
            extra = self.extra_channels(images, masks)
        noise = torch.randn(z.shape, generator=generator).to(z)
        return self.losses(z, t, noise, batch["caption"], extra)

    def training_step(self, batch: dict, index: int) -> Tensor:
        # Stratified times: every batch covers the whole schedule, which halves the noise of the loss.
        batch_size = len(batch["image"])
        strata = torch.arange(batch_size, device=self.device) + torch.rand(batch_size, device=self.device)
        t = (strata * len(self.alphas_cumprod) / batch_size).long()
        loss = self._batch_losses(batch, t).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict, index: int) -> None:
        generator = torch.Generator().manual_seed(index)
        size = len(batch["image"])
        t = torch.arange(50, 1000, 100).repeat(size // 10 + 1)[:size].to(self.device)
        self.log("val_loss", self._batch_losses(batch, t, generator).mean(), batch_size=size, prog_bar=True)

    def configure_optimizers(self) -> dict:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=self.hparams.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
        )
        return cosine_after_warmup(self, optimizer, warmup=self.hparams.warmup_steps)
