"""Distil what a diffusion model does in many steps of DDIM into one call of a smaller network.

    python -m experiments fit --config experiments/configs/cifar10_one_step.yaml --data.root DATA
    python -m experiments.one_step runs/cifar10_one_step/last.ckpt diffusion/builtin/cifar10_one_step

The folder is a diffusion model like any other, whose clean picture is the end of the teacher's walk:
`DiffPure(model, t=100, steps=1)` purifies in one call.
"""

import sys
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from diffusion.load import load
from diffusion.model import DiffusionModel
from diffusion.samplers import noised
from experiments.pixel_denoiser import patched_unet, save
from experiments.schedules import cosine_after_warmup
from purify.reverse import ddim


class OneStepDistillation(L.LightningModule):
    """Regress the end of a deterministic walk on the states along it (Luhman and Luhman, arXiv 2101.02388).

    DDIM without randomness maps each noisy picture to one clean picture, so a network can learn the map. The
    states between start and end have the same end, and train it at their own noise for free. Walks start at
    the noise that purification adds, one level for each batch.
    """

    def __init__(
        self,
        teacher: str = "cifar10",
        low: int = 40,
        high: int = 160,
        steps: int = 3,
        side: int = 32,
        patch: int = 2,
        block_out_channels: tuple[int, ...] = (64, 96),
        layers_per_block: int = 1,
        learning_rate: float = 1e-3,
        warmup_steps: int = 100,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.unet = patched_unet(side, patch, block_out_channels, layers_per_block)
        # not a submodule: the checkpoint holds the student alone
        self.teacher: list[DiffusionModel] = []

    def on_fit_start(self) -> None:
        self.teacher = [load(self.hparams.teacher, dtype=torch.bfloat16, device=self.device)]

    @torch.no_grad()
    def walk(self, images: Tensor, t: int, noise: Tensor) -> tuple[list[tuple[int, Tensor]], Tensor]:
        """Return the (timestep, state) of the teacher's walk from `t` steps into the noise, and its end."""
        (teacher,) = self.teacher
        times = teacher.schedule.lowest(t, self.hparams.steps)
        z, states = noised(teacher.schedule, teacher.encode(images), noise, times[0]), []
        for time, move in zip(times, ddim(teacher, t, self.hparams.steps), strict=True):
            states.append((time, z))
            z = move(z, images, lambda like, part=0: noise)
        return states, z

    def losses(self, states: list[tuple[int, Tensor]], end: Tensor) -> Tensor:
        """Mean squared distance of the student's clean picture from the end of the walk, for each state."""
        (teacher,) = self.teacher
        z_t = torch.cat([state for _, state in states])
        t = torch.cat([torch.full((len(end),), time, device=end.device) for time, _ in states])
        alpha, sigma = teacher.schedule.at(t, z_t)
        clean = alpha * z_t - sigma * self.unet(z_t, t).sample.float()
        return (clean - end.repeat(len(states), 1, 1, 1)).square().flatten(1).mean(1).view(len(states), -1)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images = batch[0].float() / 255
        mirrored = torch.rand(len(images), 1, 1, 1, device=self.device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
        t = int(torch.randint(self.hparams.low, self.hparams.high + 1, (1,)))
        loss = self.losses(*self.walk(images, t, self._noise(images))).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        images = batch[0].float() / 255
        states, end = self.walk(images, 100, self._noise(images, torch.Generator().manual_seed(index)))
        self.log("val_loss", self.losses(states[:1], end).mean(), batch_size=len(images))

    def _noise(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shape = pixel_unshuffle(images, self.hparams.patch).shape
        return torch.randn(shape, generator=generator).to(images)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=self.hparams.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
        )
        return cosine_after_warmup(self, optimizer, warmup=self.hparams.warmup_steps)


def export(checkpoint: str, out: str) -> None:
    """Write the averaged weights of a checkpoint."""
    module = OneStepDistillation.load_from_checkpoint(checkpoint, map_location="cpu")
    save(module.unet, Path(out), labels=(), patch=module.hparams.patch)


if __name__ == "__main__":
    # a checkpoint names the class by its module, which as a script would be another one
    from experiments import one_step

    one_step.export(*sys.argv[1:])
