"""Train the built-in autoencoder: pictures to 16 latent channels at an eighth of the side, and back."""

from pathlib import Path

import lightning as L
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from experiments.schedules import cosine_after_warmup


class AutoencoderTraining(L.LightningModule):
    """A small `AutoencoderKL` on a mixture of absolute and squared error with a faint pull of the posterior
    to N(0, I).

    There is no adversarial or perceptual term: the model exists to be attacked and measured, and squared
    error is what the reported PSNR measures.
    """

    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (32, 64, 96, 96),
        layers_per_block: int = 1,
        latent_channels: int = 16,
        learning_rate: float = 1.5e-3,
        warmup_steps: int = 100,
        squared_weight: float = 4.0,
        kl_weight: float = 1e-5,
        start_from: str | None = None,
        decoder_only: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        stages = len(block_out_channels)
        self.autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=8,
            # Attention over the latent grid would cost more than all convolutions on a large picture.
            mid_block_add_attention=False,
            sample_size=256,
        ).to(memory_format=torch.channels_last)
        if start_from is not None:
            self._continue_from(Path(start_from))
        if decoder_only:
            self.autoencoder.encoder.requires_grad_(False)
            self.autoencoder.quant_conv.requires_grad_(False)

    def _continue_from(self, path: Path) -> None:
        """Take the weights of an earlier stage's checkpoint, or of an exported autoencoder's folder."""
        if path.is_dir():
            self.autoencoder.load_state_dict(load_file(path / "diffusion_pytorch_model.safetensors"))
            return
        # Averages lag while the learning rate is high, so a stage goes on from the raw weights.
        state = torch.load(path, map_location="cpu", weights_only=True)["current_model_state"]
        self.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})

    def training_step(self, batch: dict, index: int) -> Tensor:
        x = (2 * batch["image"] - 1).to(memory_format=torch.channels_last)
        posterior = self.autoencoder.encode(x).latent_dist
        error = self.autoencoder.decode(posterior.sample()).sample.float() - x
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = (
            error.abs().mean()
            + self.hparams.squared_weight * error.square().mean()
            + self.hparams.kl_weight * kl
        )
        self.log_dict({"loss": loss, "kl": kl}, prog_bar=True)
        return loss

    def validation_step(self, batch: dict, index: int) -> None:
        x = (2 * batch["image"] - 1).to(memory_format=torch.channels_last)
        z = self.autoencoder.encode(x).latent_dist.mean
        reconstruction = self.autoencoder.decode(z).sample.float().clamp(-1, 1)
        psnr = -10 * ((reconstruction - x) / 2).square().flatten(1).mean(1).log10()
        self.log_dict(
            {"val_psnr": psnr.mean(), "val_latent_std": z.float().std()}, batch_size=len(x), prog_bar=True
        )

    def configure_optimizers(self) -> dict:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=self.hparams.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        return cosine_after_warmup(self, optimizer, warmup=self.hparams.warmup_steps)
