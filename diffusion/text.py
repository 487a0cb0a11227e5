"""Prompts to the embeddings that text-to-image models attend to."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusion.features import replaced_output

TokenIds = Int[Tensor, "n length"]
Rows = Float[Tensor, "n length dim"]


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
        return self._tokens(prompts)["input_ids"]

    def words(self, prompts: Sequence[str]) -> Bool[Tensor, "n length"]:
        """Return which tokens are the prompts' own, and neither marks nor padding."""
        return self._tokens(prompts)["special_tokens_mask"] == 0

    def fit(self, prompts: Sequence[str]) -> list[bool]:
        """Return of each prompt whether its tokens fit, so that nothing of it is cut off."""
        found = self.tokenizer(list(prompts), verbose=False)["input_ids"]
        return [len(ids) <= self.length for ids in found]

    def rows(self, prompts: Sequence[str]) -> Rows:
        """Return the embeddings that the tokens are looked up as."""
        return self._table()(self.ids(prompts))

    def vocabulary(self) -> tuple[Float[Tensor, "vocabulary dim"], Bool[Tensor, " vocabulary"]]:
        """Return the embedding of every token, and which of them are words and no marks."""
        table = self._table().weight
        words = torch.ones(len(table), dtype=torch.bool)
        words[len(self.tokenizer) :] = False
        words[torch.tensor(self.tokenizer.all_special_ids)] = False
        return table, words

    def written(self, ids: Sequence[int]) -> str:
        """Return what tokens say."""
        return str(self.tokenizer.decode(list(ids))).strip()

    def read(self, words: str) -> list[int]:
        """Return the tokens of words, without marks."""
        return self.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]

    def forward(self, prompts: Sequence[str], *, hidden: bool = False, rows: Rows | None = None) -> Any:
        """Return the encoder's output; `hidden` adds the states of every layer.

        `rows` take the place of the embeddings that the prompts' tokens are looked up as.
        """
        if rows is None:
            return self.encoder(self.ids(prompts), output_hidden_states=hidden)
        with replaced_output(self._table(), rows.to(next(self.encoder.parameters()).dtype)):
            return self.encoder(self.ids(prompts), output_hidden_states=hidden)

    def _tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        batch = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        device = next(self.encoder.parameters()).device
        return {name: values.to(device) for name, values in batch.items()}

    def _table(self) -> nn.Embedding:
        return cast(nn.Embedding, self.encoder.get_input_embeddings())


def penultimate(texts: Iterable[nn.Module], prompts: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the last but one hidden states, and the pooled projections, of CLIP text encoders."""
    outputs = [text(prompts, hidden=True) for text in texts]
    return [output.hidden_states[-2] for output in outputs], [output[0] for output in outputs]


def empty_rows(prompts: Sequence[str], like: Tensor) -> Tensor:
    """Return a boolean column on the device of `like`, true where the prompt is empty."""
    return torch.tensor([prompt == "" for prompt in prompts], device=like.device)
