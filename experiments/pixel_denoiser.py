"""Train a small pixel diffusion model, and write it in diffusers' layout.

`python -m experiments.pixel_denoiser CHECKPOINT OUT` writes the folder that `diffusion.load.load` reads.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from diffusers import DDPMScheduler, UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from experiments.schedules import cosine_after_warmup

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "clip_sample": True,
    "clip_sample_range": 1.0,
}


def patched_unet(
    side: int, patch: int, widths: tuple[int, ...], layers: int, *, classes: int | None = None
) -> UNet2DModel:
    """Return a U-Net over pictures folded `patch` by `patch` into channels, without attention but in the
    middle, told one of `classes` or nothing."""
    return UNet2DModel(
        sample_size=side // patch,
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
        attention_head_dim=32,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=classes,
    )


class PixelDenoiserTraining(L.LightningModule):
    """Velocity prediction (Salimans and Ho, 2022, arXiv 2202.00512) on pixels, classes left out at random.

    Pixels are folded `patch` by `patch` into channels, so that a small network is wide where a CPU is fast.
    A share `focus` of the training times is spent below `focus_below`, where purification works.
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        side: int = 32,
        patch: int = 2,
        block_out_channels: tuple[int, ...] = (112, 160),
        layers_per_block: int = 1,
        dropped_labels: float = 0.15,
        focus: float = 0.5,
        focus_below: int = 250,
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.unet = patched_unet(side, patch, block_out_channels, layers_per_block, classes=len(labels) + 1)
        self.register_buffer("alphas_cumprod", DDPMScheduler(**SCHEDULE).alphas_cumprod, persistent=False)

    def losses(
        self,
        images: Float[Tensor, "batch 3 height width"],
        labels: Int[Tensor, " batch"],
        t: Int[Tensor, " batch"],
        noise: Tensor,
    ) -> Float[Tensor, " batch"]:
        """Mean squared velocity error of each image in [0,1]."""
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        z = pixel_unshuffle(2 * images - 1, self.hparams.patch)
        z_t = alpha * z + sigma * noise
        velocity = self.unet(z_t, t, class_labels=labels).sample.float()
        return (velocity - (alpha * noise - sigma * z)).square().flatten(1).mean(1)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch[0].float() / 255, batch[1]
        mirrored = torch.rand(len(images), 1, 1, 1, device=self.device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
        dropped = torch.rand(len(images), device=self.device) < self.hparams.dropped_labels
        labels = labels.masked_fill(dropped, len(self.hparams.labels))
        noise = torch.randn_like(pixel_unshuffle(images, self.hparams.patch))
        loss = self.losses(images, labels, self._times(len(images)), noise).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def _times(self, batch: int) -> Int[Tensor, " batch"]:
        """Stratified, so that every batch covers the schedule; `focus` of them in its low end."""
        strata = (torch.arange(batch, device=self.device) + torch.rand(batch, device=self.device)) / batch
        focus, below, steps = self.hparams.focus, self.hparams.focus_below, len(self.alphas_cumprod)
        low, spread = strata / max(focus, 1e-9) * below, (strata - focus) / (1 - focus) * steps
        return torch.where(strata < focus, low, spread).long().clamp(0, steps - 1)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch[0].float() / 255, batch[1]
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(pixel_unshuffle(images, self.hparams.patch).shape, generator=generator)
        for name, times in {"val_loss": range(50, 1000, 100), "val_low": range(25, 200, 25)}.items():
            t = torch.tensor(times, device=self.device).repeat(len(images) // len(times) + 1)[: len(images)]
            loss = self.losses(images, labels, t, noise.to(images)).mean()
            self.log(name, loss, batch_size=len(images), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.hparams.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
        )
        return cosine_after_warmup(self, optimizer, warmup=self.hparams.warmup_steps)


def export(checkpoint: str, out: str) -> None:
    """Write the averaged weights of a checkpoint."""
    module = PixelDenoiserTraining.load_from_checkpoint(checkpoint, map_location="cpu")
    save(module.unet, Path(out), labels=module.hparams.labels, patch=module.hparams.patch)


def save(unet: UNet2DModel, folder: Path, *, labels: Sequence[str], patch: int) -> None:
    """Write a network as float16, with everything that `diffusion.load.load` needs."""
    unet.half().save_pretrained(folder / "unet")
    DDPMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "labels": list(labels),
        "patch": patch,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    # a checkpoint names the class by its module, which as a script would be another one
    from experiments import pixel_denoiser

    pixel_denoiser.export(*sys.argv[1:])
