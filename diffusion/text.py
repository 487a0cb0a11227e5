"""Prompts to the embeddings that text-to-image models attend to."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

TokenIds = Int[Tensor, "n length"]


class TextEncoder(nn.Module):
    """A tokenizer and its text encoder, CLIP's or T5's.

    Prompts are padded to `length` tokens, or cut there; it defaults to the tokenizer's own.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, *, length: int | None = None
    ) -> None:
        super().__init__()
        self.tokenizer, self.encoder = tokenizer, encoder
        self.length = length or tokenizer.model_max_length

    def ids(self, prompts: Sequence[str]) -> TokenIds:
        """Return the token numbers of prompts, on the encoder's device."""
        batch = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        return batch["input_ids"].to(next(self.encoder.parameters()).device)

    def forward(self, prompts: Sequence[str], *, hidden: bool = False) -> Any:
        """Return the encoder's output; `hidden` adds the states of every layer."""
        return self.encoder(self.ids(prompts), output_hidden_states=hidden)


def penultimate(texts: Iterable[nn.Module], prompts: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the last but one hidden states, and the pooled projections, of CLIP text encoders."""
    outputs = [text(prompts, hidden=True) for text in texts]
    return [output.hidden_states[-2] for output in outputs], [output[0] for output in outputs]


def empty_rows(prompts: Sequence[str], like: Tensor) -> Tensor:
    """Return a boolean column on the device of `like`, true where the prompt is empty."""
    return torch.tensor([prompt == "" for prompt in prompts], device=like.device)
