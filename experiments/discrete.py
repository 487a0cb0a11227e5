"""Train a small VQ autoencoder, and give pictures back through its codes.

    python -m experiments fit --config experiments/configs/cifar10_discrete.yaml --data.root DATA
    python -m experiments.discrete runs/cifar10_discrete/last.ckpt runs/discrete

What is written is a folder of diffusers' VQModel in safetensors; `Discretiser` takes it, or any other such
folder, as the codec of `distill.methods.Dad`.
"""

import sys
from typing import Self

import lightning as L
import torch
from diffusers import VQModel
from jaxtyping import Float
from torch import Tensor, nn

from experiments.schedules import cosine_after_warmup

Images = Float[Tensor, "batch 3 height width"]


class DiscreteTraining(L.LightningModule):
    """A VQ autoencoder (van den Oord et al., NeurIPS 2017, arXiv 1711.00937) by mean squared error."""

    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (32, 64, 64),
        layers_per_block: int = 1,
        latent_channels: int = 8,
        codes: int = 512,
        learning_rate: float = 1e-3,
        warmup_steps: int = 100,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        stages = len(block_out_channels)
        self.autoencoder = VQModel(
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            num_vq_embeddings=codes,
            norm_num_groups=8,
            sample_size=32,
        )

    def losses(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of pictures as bytes, in [-1, 1], and what the codes cost."""
        images = 2 * pixels / 255 - 1
        given = self.autoencoder(images)
        return (given.sample - images).square().mean(), given.commit_loss

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        error, cost = self.losses(batch[0])
        self.log_dict({"loss": error, "codes": cost})
        return error + cost

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        error, _ = self.losses(batch[0])
        self.log("val_loss", error, batch_size=len(batch[0]))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate)
        return cosine_after_warmup(self, optimizer, warmup=self.hparams.warmup_steps)


class Discretiser(nn.Module):
    """Images in [0, 1] as a VQ autoencoder gives them back, without gradients.

    Raises OSError for a folder that holds no VQModel in safetensors.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.autoencoder = VQModel.from_pretrained(path, use_safetensors=True).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Images) -> Images:
        return ((self.autoencoder(2 * images - 1).sample + 1) / 2).clamp(0, 1)


def export(checkpoint: str, out: str) -> None:
    """Write the autoencoder of a checkpoint."""
    module = DiscreteTraining.load_from_checkpoint(checkpoint, map_location="cpu")
    module.autoencoder.save_pretrained(out)


if __name__ == "__main__":
    # a checkpoint names the class by its module, which as a script would be another one
    from experiments import discrete

    discrete.export(*sys.argv[1:])
