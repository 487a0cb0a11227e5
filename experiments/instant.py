"""Train the network of the instant mode, and write it with its card.

    python -m experiments fit --config experiments/configs/builtin_instant.yaml --data.root DATA
    python -m experiments.instant runs/builtin_instant/last.ckpt protect/instant

What a method with steps searches for each picture, the network learns to say at once (as DiffVax and
GAP-Diff do): the steps are spent in training, where the gradient goes through the frozen surrogates.
"""

import json
import sys
from pathlib import Path

import lightning as L
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from diffusion.load import load
from diffusion.model import DiffusionModel
from experiments.model_card import checksums
from experiments.schedules import cosine_after_warmup
from imaging.metrics import ssim
from imaging.transforms import gaussian_blur, jpeg
from protect.generator import CONFIG, WEIGHTS, Generator

FLOOR = 1e-4
"""Added below the logarithm, so that a flat window, where little can be changed, does not decide alone."""

SHARP = 4.0
"""What training leaves unused of the budget, so that tanh has a gradient, the exported network uses."""

SMOOTH = 3.0
"""Standard deviation, in pixels, of the blur that tells tints and shades from structure."""


class InstantTraining(L.LightningModule):
    """Push apart what the surrogates make of a picture and of its perturbed twin, noised alike.

    The score is 1 - SSIM between the two decoded one-step guesses of the clean picture: an edit cut short to
    one call of the denoiser, decoded in a window of `window` latent pixels. Tints and shades do not
    count: what is smooth in the difference is taken out first, or the network learns to shift the colours of
    whole regions, which an edit keeps as they are and which spoils nothing. The score's logarithm is averaged
    over pictures, budgets and surrogates, so that none of them decides alone. A share of the batches is saved
    as JPEG on the way, both twins alike.
    """

    def __init__(
        self,
        surrogates: tuple[str, ...] = ("builtin",),
        widths: tuple[int, ...] = (64, 96, 96),
        depths: tuple[int, ...] = (2, 2, 2),
        patch: int = 4,
        smallest_eps: float = 4,
        largest_eps: float = 16,
        earliest: float = 0.1,
        latest: float = 0.55,
        window: int = 8,
        saved_as_jpeg: float = 0.25,
        learning_rate: float = 1.2e-3,
        warmup_steps: int = 30,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.generator = Generator(widths, depths, patch).to(memory_format=torch.channels_last)
        # not submodules: the checkpoint holds the generator alone
        self.surrogates: list[DiffusionModel] = []

    def on_fit_start(self) -> None:
        self.surrogates = [load(name, device=self.device) for name in self.hparams.surrogates]

    def changes(
        self,
        model: DiffusionModel,
        images: Tensor,
        perturbed: Tensor,
        captions: list[str],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """1 - SSIM between the model's one-step guesses at images and at perturbed ones, on equal noise."""
        with torch.no_grad():
            z, condition = model.encode(images), model.condition(captions)
        noise = torch.randn(z.shape, generator=generator).to(z)
        shares = torch.rand(len(z), generator=generator).to(z)
        shares = self.hparams.earliest + (self.hparams.latest - self.hparams.earliest) * shares
        t = (shares * (len(model.schedule) - 1)).long()
        alpha, sigma = model.schedule.at(t, z)
        rows, columns = (self._window(side, generator) for side in z.shape[-2:])

        def guess(z: Tensor) -> Tensor:
            clean = model.predict_clean(alpha * z + sigma * noise, t, condition)
            # unclamped, as pixels beyond black and white would lose their gradient
            return model.decode(clean[..., rows, columns], clamp=False).float()

        with torch.no_grad():
            before = guess(z)
        after = guess(model.encode(perturbed))
        with torch.autocast(images.device.type, enabled=False):  # differences of squares need all of float32
            after = after - gaussian_blur(after - before, SMOOTH)
            return (1 - ssim(after, before)).clamp_min(0)

    def _window(self, side: int, generator: torch.Generator | None) -> slice:
        kept = min(self.hparams.window, side)
        start = int(torch.randint(side - kept + 1, (), generator=generator))
        return slice(start, start + kept)

    def losses(self, images: Tensor, captions: list[str]) -> Float[Tensor, "surrogates batch"]:
        """The negative logarithm of each score, at a budget drawn for each picture."""
        low, high = self.hparams.smallest_eps / 255, self.hparams.largest_eps / 255
        eps = low + (high - low) * torch.rand(len(images), 1, 1, 1, device=self.device)
        perturbed = (images + eps * self.generator(images)).clamp(0, 1)
        if torch.rand(()) < self.hparams.saved_as_jpeg:
            quality = 60 + 35 * torch.rand(len(images), device=self.device)
            with torch.autocast(images.device.type, enabled=False):
                images, perturbed = jpeg(images, quality), jpeg(perturbed, quality)
        scores = [self.changes(model, images, perturbed, captions) for model in self.surrogates]
        return -(torch.stack(scores) + FLOOR).log()

    def training_step(self, batch: dict, index: int) -> Tensor:
        loss = self.losses(batch["image"], batch["caption"]).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict, index: int) -> None:
        images = batch["image"]
        perturbed = (images + 8 / 255 * self.generator(images)).clamp(0, 1)
        seeded = torch.Generator().manual_seed(index)
        for model in self.surrogates:
            changes = self.changes(model, images, perturbed, batch["caption"], seeded)
            self.log(f"val_change_{model.name}", changes.mean(), batch_size=len(images))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.generator.parameters(),
            lr=self.hparams.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
        )
        return cosine_after_warmup(self, optimizer, warmup=self.hparams.warmup_steps)


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
