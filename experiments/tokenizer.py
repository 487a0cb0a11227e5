"""`python -m experiments.tokenizer ROOT OUT`: a small BPE tokenizer for the built-in text encoder."""

import sys
from pathlib import Path

from transformers import CLIPTokenizer

from experiments.captions import COLOUR_NAMES, subject

_COMMON = """dark dim mid tone bright soft contrasty photo painting picture portrait drawing
of a an the and in on with"""


def train(names: list[str], *, vocab_size: int = 2048, length: int = 32) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges cover `names` and our captions; other words fall back to bytes."""
    corpus = [*names, *COLOUR_NAMES, *_COMMON.split()]
    tokenizer = CLIPTokenizer().train_new_from_iterator([corpus] * 4, vocab_size=vocab_size)
    tokenizer.model_max_length = length
    return tokenizer


def main(root: str, out: str) -> None:
    paths = sorted(Path(root).glob("imagenet_sample/*.jpg")) + sorted(Path(root).glob("images/*.jpg"))
    if not paths:
        raise SystemExit(f"no pictures below {root}; give the data folder")
    tokenizer = train([subject(path) for path in paths])
    tokenizer.save_pretrained(out)
    print(f"{len(tokenizer)} tokens written to {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
