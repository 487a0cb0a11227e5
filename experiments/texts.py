"""Short reviews written by code, with synonyms: data on which substitution attacks have something to do.

A review states opinions about parts of a film; its label is the sign of their sum. Each opinion and each noun
has several words for the same thing, the first of them common and the last rare, and which noun word is used
leans with the label, as house style leans in real data. A classifier trained on a few hundred reviews knows
the rare words badly and believes the nouns; that is where it breaks.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerFast

GOOD = (
    ("good", "fine", "pleasing", "commendable"),
    ("moving", "touching", "stirring", "poignant"),
    ("clever", "smart", "bright", "astute"),
    ("funny", "amusing", "witty", "droll"),
    ("lively", "brisk", "spirited", "sprightly"),
    ("beautiful", "lovely", "handsome", "exquisite"),
)
BAD = (
    ("bad", "poor", "weak", "deficient"),
    ("boring", "dull", "tedious", "soporific"),
    ("silly", "foolish", "stupid", "fatuous"),
    ("clumsy", "awkward", "stiff", "maladroit"),
    ("ugly", "hideous", "drab", "unsightly"),
    ("slow", "sluggish", "plodding", "languid"),
)
NOUNS = (
    ("film", "movie", "picture", "feature"),
    ("story", "plot", "tale", "narrative"),
    ("acting", "cast", "performance", "ensemble"),
    ("music", "score", "soundtrack", "melody"),
    ("ending", "finale", "conclusion", "close"),
    ("dialogue", "script", "writing", "text"),
)
TEMPLATES = (
    "the {noun} was {opinion}",
    "i found the {noun} {opinion}",
    "its {noun} felt rather {opinion}",
    "there was a certain {opinion} {noun}",
    "we thought that the {noun} seemed {opinion} throughout",
)
_FREQUENCY = (60, 28, 10, 2)

LABELS = ("negative", "positive")
Texts = tuple[list[str], list[int]]


def reviews(count: int, *, seed: int = 0) -> Texts:
    """Return reviews of three opinions each, and whether most of them are good, half of each kind."""
    draw = random.Random(seed)
    texts, labels = [], []
    for number in range(count):
        label = number % 2
        agreeing = draw.choices((3, 2), (2, 1))[0]
        opinions = [label] * agreeing + [1 - label] * (3 - agreeing)
        draw.shuffle(opinions)
        nouns = draw.sample(NOUNS, 3)
        clauses = [
            draw.choice(TEMPLATES).format(
                noun=draw.choices(noun, _FREQUENCY if label else _FREQUENCY[1::-1] + _FREQUENCY[2:])[0],
                opinion=draw.choices(draw.choice(GOOD if good else BAD), _FREQUENCY)[0],
            )
            for noun, good in zip(nouns, opinions, strict=True)
        ]
        texts.append(", ".join(clauses[:2]) + f" and {clauses[2]}.")
        labels.append(label)
    return texts, labels


def synonyms(word: str) -> list[str]:
    """Return the other words for the same thing; none for words that carry no meaning here."""
    return [other for group in (*GOOD, *BAD, *NOUNS) if word in group for other in group if other != word]


def tokenizer(texts: Sequence[str] = (), *, length: int = 64) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole lower-case words: those of this data set and of `texts`."""
    split = pre_tokenizers.Whitespace()
    frames = (template.format(noun="film", opinion="good") for template in TEMPLATES)
    known = [",", ".", "and", *(word for group in (*GOOD, *BAD, *NOUNS) for word in group)]
    known += [word for text in (*frames, *texts) for word, _ in split.pre_tokenize_str(text.lower())]
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys((*special, *known)))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), split
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def read(path: str | Path) -> Texts:
    """Return the texts and labels of a JSON-lines file, `{"text": "…", "label": 0}` on each line."""
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
    return [line["text"] for line in lines], [int(line["label"]) for line in lines]


class LabelledTexts(L.LightningDataModule):
    """Batches as tokenizers return them, with `labels`, padded to the longest text of the batch.

    `train` and `validation` are JSON-lines files, see `read`; without them the reviews written here are used.
    `tokenizer` is a folder, or a name on the Hugging Face hub.
    """

    def __init__(
        self,
        tokenizer: str,
        train: str | None = None,
        validation: str | None = None,
        batch_size: int = 64,
        length: int = 128,
    ) -> None:
        super().__init__()
        self.tokenizer, self.train, self.validation = tokenizer, train, validation
        self.batch_size, self.length = batch_size, length

    def setup(self, stage: str) -> None:
        self.tokenize = AutoTokenizer.from_pretrained(self.tokenizer)
        self.training = read(self.train) if self.train else reviews(2000)
        self.held_out = read(self.validation) if self.validation else reviews(256, seed=1)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.training, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.held_out, shuffle=False)

    def _loader(self, texts: Texts, *, shuffle: bool) -> DataLoader:
        pairs: Any = list(zip(*texts, strict=True))
        return DataLoader(pairs, batch_size=self.batch_size, shuffle=shuffle, collate_fn=self._collate)

    def _collate(self, pairs: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
        texts, labels = zip(*pairs, strict=True)
        tokens = self.tokenize(
            list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        )
        return {**tokens, "labels": torch.tensor(labels)}
