"""Train DiffuseDef's denoiser on the hidden states of a frozen text classifier, and judge the defence.

`python -m experiments fit --config experiments/configs/text_denoiser.yaml --model.classifier MODEL
--data.tokenizer MODEL --data.train train.jsonl --data.validation dev.jsonl` trains, and
`python -m experiments.text_defense CHECKPOINT OUT` writes the folder that `StateDenoiser.load` reads.
"""

import sys

import lightning as L
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from experiments.schedules import cosine_after_warmup
from purify.text import StateDenoiser, denoising_loss


class TextDenoiserTraining(L.LightningModule):
    """Noise prediction on last hidden states (DiffuseDef, Li et al., ACL 2025, arXiv 2407.00248).

    `classifier` is a folder or a name on the Hugging Face hub; `steps` is 30 in the paper, 10 for long texts.
    Warm-up takes the share `warmup` of the run; half a cosine follows, where the paper restarts it.
    """

    def __init__(
        self,
        classifier: str,
        steps: int = 30,
        heads: int | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 1e-6,
        warmup: float = 0.02,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        model = AutoModelForSequenceClassification.from_pretrained(classifier)
        # in a list, so that it is neither trained, saved nor switched to training
        self._encoder = [model.base_model.requires_grad_(False).eval()]
        self.denoiser = StateDenoiser(model.config.hidden_size, heads=heads, steps=steps)

    def states(self, batch: dict[str, Tensor]) -> Tensor:
        """What the encoder ends in for a batch of tokens."""
        encoder = self._encoder[0].to(self.device)
        with torch.no_grad():
            return encoder(**{key: batch[key] for key in batch if key != "labels"}).last_hidden_state

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        states = self.states(batch)
        t = torch.randint(self.hparams.steps, (len(states),), device=self.device)
        noise = torch.randn_like(states)
        loss = denoising_loss(self.denoiser, states, t, noise, batch["attention_mask"]).mean()
        self.log("loss", loss, prog_bar=True, batch_size=len(states))
        return loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        states = self.states(batch)
        noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(index)).to(states)
        t = torch.arange(len(states), device=self.device) % self.hparams.steps
        loss = denoising_loss(self.denoiser, states, t, noise, batch["attention_mask"]).mean()
        self.log("val_loss", loss, prog_bar=True, batch_size=len(states))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), lr=self.hparams.learning_rate, weight_decay=self.hparams.weight_decay
        )
        total = int(self.trainer.estimated_stepping_batches)
        return cosine_after_warmup(self, optimizer, warmup=max(1, round(self.hparams.warmup * total)))


def export(checkpoint: str, out: str) -> None:
    """Write the denoiser of a checkpoint."""
    module = TextDenoiserTraining.load_from_checkpoint(checkpoint, map_location="cpu")
    module.denoiser.save(out)


if __name__ == "__main__":
    # a checkpoint names the class by its module, which as a script would be another one
    from experiments import text_defense

    text_defense.export(*sys.argv[1:])
