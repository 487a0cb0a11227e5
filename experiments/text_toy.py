"""`python -m experiments.text_toy`: DiffuseDef under attack on the reviews of `experiments.texts`.

A small BERT is trained on the reviews, a denoiser on its hidden states, and both are attacked by questions,
with the null row beside each attack. Nothing is downloaded. Figures say how defence and attacks compare here,
not what they do on real language.
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from attacks.text import Report, Words, character_edits, evaluate, greedy, table
from experiments.text_defense import TextDenoiserTraining
from experiments.texts import LABELS, LabelledTexts, reviews, synonyms, tokenizer
from purify.text import DiffuseDef, StateDenoiser, TextClassifier, denoising_loss


class Mixing(DiffuseDef):
    """DiffuseDef as its release averages: copies of one text are looked for where other texts' lie.

    It repeats the whole batch and then averages neighbours, so each text's answer is a blend with the texts
    that happen to be asked about beside it. Right for a batch of one alone.
    """

    def average(self, copies: Tensor) -> Tensor:
        repeated = copies.unflatten(0, (-1, self.ensemble)).transpose(0, 1).flatten(0, 1)
        return super().average(repeated)


def small_bert(tokenizer: PreTrainedTokenizerFast, *, width: int = 32) -> BertForSequenceClassification:
    """Return an untrained BERT of two layers."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.num_labels = len(LABELS)
    return BertForSequenceClassification(config)


def fit_classifier(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    epochs: int,
    batch_size: int = 32,
) -> None:
    """Train a classifier in place with AdamW and a learning rate that falls to nothing."""
    tokens, truth = tokenizer(list(texts), padding=True, return_tensors="pt"), torch.tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    total = epochs * -(-len(texts) // batch_size)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(texts)).split(batch_size):
            logits = model(**{key: value[rows] for key, value in tokens.items()}).logits
            optimizer.zero_grad()
            cross_entropy(logits, truth[rows]).backward()
            optimizer.step()
            decay.step()
    model.eval()


def fit_denoiser(folder: Path, *, steps: int, epochs: int, learning_rate: float = 1e-3) -> StateDenoiser:
    """Train a denoiser for the classifier and tokenizer in a folder, with the module of `text_defense`."""
    training = TextDenoiserTraining(str(folder), steps=steps, heads=2, learning_rate=learning_rate)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(training, LabelledTexts(str(folder)))
    return training.denoiser.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, attack and print one table per defence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=50, help="reviews that are attacked (default 50)")
    parser.add_argument("--training-texts", type=int, default=600, help="reviews that train the classifier")
    parser.add_argument("--epochs", type=int, default=12, help="of the classifier (default 12)")
    parser.add_argument("--denoiser-epochs", type=int, default=40, help="over 2000 reviews (default 40)")
    parser.add_argument("--only", nargs="*", help="names of defences, beside none; all by default")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    L.seed_everything(given.seed, verbose=False)
    words = tokenizer()
    model = small_bert(words)
    fit_classifier(model, words, *reviews(given.training_texts), epochs=given.epochs)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        denoiser = fit_denoiser(Path(folder), steps=30, epochs=given.denoiser_epochs)
    defences = {
        "no defence": model,
        "ensemble 10, no denoising": DiffuseDef(model, denoiser, steps=0),
        "DiffuseDef, no ensemble": DiffuseDef(model, denoiser, ensemble=1),
        "DiffuseDef": DiffuseDef(model, denoiser),
        "DiffuseDef, timesteps as released": DiffuseDef(model, denoiser, order="release"),
        "DiffuseDef, noised to index 14, 15 steps": DiffuseDef(model, denoiser, noise_at=14, steps=15),
        "DiffuseDef, batches mixed as released": Mixing(model, denoiser),
    }
    unknown = set(given.only or ()) - set(defences)
    if unknown:
        parser.error(f"unknown defence {min(unknown)!r}; available: {', '.join(defences)}")
    texts, labels = reviews(given.texts, seed=2)
    print(f"share of the noise at index 1 left by the denoiser: {left(model, denoiser, words, texts):.3f}\n")
    plain = TextClassifier(model, words)(texts)
    bare: list[Report] = []
    for name, defence in defences.items():
        if given.only is not None and name not in ("no defence", *given.only):
            continue
        classify = TextClassifier(defence, words, generator=torch.Generator().manual_seed(given.seed))
        judged = evaluate(classify, texts, labels, attacks())
        bare = bare or judged
        moved = "; ".join(f"{one.attack} {100 * transferred(classify, one):.1f}" for one in bare)
        print(f"{name}\n\n{table(judged)}\nright about texts found without a defence: {moved}")
        spent = "; ".join("{} {} of {}".format(one.attack, *idle(one)) for one in judged)
        print(f"changes spent on words without meaning: {spent}")
        apart = (classify(texts) - plain).abs().mean()
        print(f"mean change of a probability: {apart:.1e}\n", flush=True)


@torch.no_grad()
def left(
    model: BertForSequenceClassification,
    denoiser: StateDenoiser,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
) -> float:
    """Return the denoiser's loss at index 1, where predicting nothing costs 1."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    states = model.base_model(**tokens).last_hidden_state
    noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    t = torch.ones(len(states), dtype=torch.long)
    return float(denoising_loss(denoiser, states, t, noise, tokens["attention_mask"]).mean())


def idle(report: Report) -> tuple[int, int]:
    """Return how many changes fall on words that have no synonyms, and how many there are."""
    changed = [Words.of(one.original)[place] for one in report.results for place in one.changed]
    return sum(not synonyms(word) for word in changed), len(changed)


def transferred(classify: TextClassifier, report: Report, *, answers: int = 10) -> float:
    """Return the share of right answers about texts that were found by attacking another classifier."""
    said = [classify([one.text] * answers).argmax(1) == one.label for one in report.results]
    return float(torch.cat(said).float().mean())


def attacks() -> dict[str, partial]:
    """Attacks by name: words for words, letters for letters, and words with ten answers averaged."""
    words = partial(greedy, candidates=synonyms)
    return {
        "words": words,
        "letters": partial(greedy, candidates=character_edits),
        "words, 10 answers averaged": partial(words, draws=10, queries_per_word=500),
    }


if __name__ == "__main__":
    main()
