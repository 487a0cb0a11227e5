"""Train the network of the instant mode, and write it with its card.

    python -m experiments fit --config experiments/configs/builtin_instant.yaml --data.root DATA
    python -m experiments.instant runs/builtin_instant/last.ckpt protect/instant

What a method with steps searches for each picture, the network learns to say at once (as DiffVax and
GAP-Diff do): the steps are spent in training, where the gradient goes through the frozen surrogates.
"""

import json
import sys
from functools import lru_cache
from pathlib import Path

import lightning as L
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from diffusion.load import load
from diffusion.model import DiffusionModel, Latents
from experiments.model_card import checksums
from experiments.schedules import cosine_after_warmup
from imaging.transforms import jpeg
from protect.generator import CONFIG, WEIGHTS, Generator
from protect.targets import texture

SHARP = 4.0
"""What training leaves unused of the budget, so that tanh has a gradient, the exported network uses."""


class InstantTraining(L.LightningModule):
    """Pull the latents of perturbed pictures towards that of a texture, as the textural half of Mist does.

    The logarithm of the mean squared distance is averaged over pictures, budgets and surrogates, so that none
    of them decides alone. Crops begin where the texture does, and tiles of a large picture at a multiple of
    its period, so there is one target for all. A share of the batches is saved as JPEG on the way.
    """

    def __init__(
        self,
        surrogates: tuple[str, ...] = ("builtin",),
        widths: tuple[int, ...] = (48, 80, 80),
        depths: tuple[int, ...] = (1, 2, 2),
        patch: int = 4,
        smallest_eps: float = 4,
        largest_eps: float = 16,
        saved_as_jpeg: float = 0.25,
        learning_rate: float = 1.2e-3,
        texture_rate: float = 0.1,
        warmup_steps: int = 30,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.generator = Generator(widths, depths, patch).to(memory_format=torch.channels_last)
        # not submodules: the checkpoint holds the generator alone
        self.surrogates: list[DiffusionModel] = []

    def on_fit_start(self) -> None:
        self.surrogates = [load(name, device=self.device) for name in self.hparams.surrogates]

    def distances(self, model: DiffusionModel, images: Tensor) -> Float[Tensor, " batch"]:
        """Mean squared distance of the latents of images from that of the texture."""
        target = _target(model, *images.shape[-2:])
        return (model.encode(images) - target).float().square().flatten(1).mean(1)

    def losses(self, images: Tensor) -> Float[Tensor, "surrogates batch"]:
        """The logarithm of each distance, at a budget drawn for each picture."""
        low, high = self.hparams.smallest_eps / 255, self.hparams.largest_eps / 255
        eps = low + (high - low) * torch.rand(len(images), 1, 1, 1, device=self.device)
        perturbed = (images + eps * self.generator(images)).clamp(0, 1)
        if torch.rand(()) < self.hparams.saved_as_jpeg:
            quality = 60 + 35 * torch.rand(len(images), device=self.device)
            with torch.autocast(images.device.type, enabled=False):
                perturbed = jpeg(perturbed, quality)
        return torch.stack([self.distances(model, perturbed) for model in self.surrogates]).log()

    def training_step(self, batch: dict, index: int) -> Tensor:
        loss = self.losses(batch["image"]).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict, index: int) -> None:
        images = batch["image"]
        perturbed = (images + 8 / 255 * self.generator(images)).clamp(0, 1)
        for model in self.surrogates:
            left = self.distances(model, perturbed) / self.distances(model, images)
            self.log(f"val_left_{model.name}", left.mean(), batch_size=len(images))

    def configure_optimizers(self) -> dict:
        rate, parts = self.hparams.learning_rate, dict(self.generator.named_parameters())
        first = {"params": [parts.pop("texture")], "lr": self.hparams.texture_rate, "weight_decay": 0.0}
        optimizer = torch.optim.AdamW(
            [{"params": list(parts.values())}, first], lr=rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        return cosine_after_warmup(self, optimizer, warmup=self.hparams.warmup_steps)


@lru_cache(maxsize=8)
@torch.no_grad()
def _target(model: DiffusionModel, height: int, width: int) -> Latents:
    return model.encode(texture(height, width).to(model.device))


def export(checkpoint: str, out: str) -> None:
    """Write the averaged weights of a checkpoint as float16, with their configuration, and its checksum
    into the card, of which the rest stays."""
    module = InstantTraining.load_from_checkpoint(checkpoint, map_location="cpu")
    folder, trained = Path(out), module.hparams
    folder.mkdir(parents=True, exist_ok=True)
    weights = module.generator.state_dict().items()
    save_file({name: value.half().contiguous() for name, value in weights}, folder / WEIGHTS)
    config = module.generator.config | {
        "push": SHARP,
        "surrogates": list(trained.surrogates),
        "eps": [trained.smallest_eps, trained.largest_eps],
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    card = folder / "README.md"
    head = card.read_text().split("## Files")[0] if card.exists() else _head(module)
    files = ["## Files", "", "| file | KiB | SHA-256 |", "|---|---|---|", *checksums(folder)]
    card.write_text(head + "\n".join(files) + "\n")


def _head(module: InstantTraining) -> str:
    trained = module.hparams
    return (
        "# A network of the instant mode\n\n"
        f"Trained against {' and '.join(trained.surrogates)} at `eps` {trained.smallest_eps:g} to "
        f"{trained.largest_eps:g} of 255.\n\n"
    )


if __name__ == "__main__":
    # a checkpoint names the class by its module, which as a script would be another one
    from experiments import instant

    instant.export(*sys.argv[1:])
