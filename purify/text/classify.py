"""A text classifier as a function from texts to probabilities, which is all that a query attack sees."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.tape import NoiseTape
from purify.text.defense import DiffuseDef

Probabilities = Float[Tensor, "texts classes"]
Tokenize = Callable[..., Mapping[str, Tensor]]


class TextClassifier:
    """Texts in, class probabilities out, on the CPU.

    Takes a model of the transformers family for sequence classification, or a `DiffuseDef` of one, which
    then draws fresh noise for each text; and that family's tokenizer.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenize,
        *,
        batch_size: int = 64,
        length: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Cut texts at `length` tokens (None: at the tokenizer's own limit); `generator` draws the seeds."""
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.length, self.generator = batch_size, length, generator

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Probabilities:
        """Return probabilities; raises ValueError for no texts."""
        if not texts:
            raise ValueError("at least one text is needed")
        device = next(self.model.parameters()).device
        parts, more = [], {}
        random = isinstance(self.model, DiffuseDef)
        # all at once, so that a text's noise does not depend on the size of batches
        seeds = NoiseTape.fresh(len(texts), self.generator).seeds if random else None
        for start in range(0, len(texts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            part = list(texts[rows])
            tokens = self.tokenizer(
                part, padding=True, truncation=True, max_length=self.length, return_tensors="pt"
            )
            if seeds is not None:
                more["seeds"] = seeds[rows]
            output = self.model(**{key: value.to(device) for key, value in tokens.items()}, **more)
            logits = output if isinstance(output, Tensor) else output.logits
            parts.append(logits.float().softmax(1).cpu())
        return torch.cat(parts)
