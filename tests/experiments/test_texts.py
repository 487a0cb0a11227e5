"""The text recipe: its data, its training at toy size, and the defence under attack."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from attacks.text import evaluate, greedy
from experiments.text_toy import Mixing, fit_classifier, small_bert
from experiments.texts import BAD, GOOD, NOUNS, reviews, synonyms, tokenizer
from purify.text import DiffuseDef, StateDenoiser, TextClassifier

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"


def test_a_reviews_label_is_what_most_of_its_opinions_say():
    texts, labels = reviews(300, seed=5)
    good, bad = ({word for group in groups for word in group} for groups in (GOOD, BAD))
    for text, label in zip(texts, labels, strict=True):
        words = text.replace(",", " ").replace(".", " ").split()
        votes = [1 if word in good else 0 for word in words if word in good | bad]
        assert len(votes) == 3
        assert label == (sum(votes) > 1)
    assert Counter(labels) == {0: 150, 1: 150}
    assert (texts, labels) == reviews(300, seed=5)
    assert texts != reviews(300, seed=6)[0]


def test_synonyms_are_mutual_and_never_change_the_label():
    for group in (*GOOD, *BAD, *NOUNS):
        for word in group:
            assert set(synonyms(word)) == set(group) - {word}
    assert synonyms("the") == []
    words = [word for group in (*GOOD, *BAD, *NOUNS) for word in group]
    assert len(words) == len(set(words))


def test_the_tokenizer_knows_every_word_of_the_reviews():
    made = tokenizer()
    ids = made(reviews(200)[0])["input_ids"]
    assert all(made.unk_token_id not in row for row in ids)
    assert made.decode(made("The film was ugly.")["input_ids"]) == "[CLS] the film was ugly . [SEP]"
    padded = made(["good", "the film was good"], padding=True)
    assert padded["attention_mask"][0] == [1, 1, 1, 0, 0, 0]
    assert made.unk_token_id in made("flim")["input_ids"]


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    words = tokenizer()
    model = small_bert(words)
    fit_classifier(model, words, *reviews(300), epochs=10)
    return model, words


def test_the_small_classifier_is_right_until_words_are_replaced(trained):
    model, words = trained
    texts, labels = reviews(40, seed=2)
    attack = partial(greedy, candidates=synonyms)
    (report,) = evaluate(TextClassifier(model, words), texts, labels, {"words": attack})
    attacked, null = report.rows()
    assert null.under_attack >= 0.9
    assert attacked.under_attack <= null.under_attack - 0.2
    assert attacked.fresh == pytest.approx(attacked.under_attack)


def test_mixed_batches_answer_about_other_texts(trained):
    """The release's average blends neighbours: the same text is answered otherwise in other company."""
    model, words = trained
    texts = reviews(8, seed=2)[0]
    tokens = words(texts, padding=True, return_tensors="pt")
    options = {"ensemble": 10, "steps": 0, "noise_at": None}
    with torch.no_grad():
        plain = model(**tokens).logits
    denoiser = StateDenoiser(32, heads=2)
    torch.testing.assert_close(DiffuseDef(model, denoiser, **options)(**tokens), plain)
    mixed = Mixing(model, denoiser, **options)
    assert (mixed(**tokens) - plain).abs().max() > 0.5
    own = {key: value[:1] for key, value in tokens.items()}
    torch.testing.assert_close(mixed(**own), plain[:1])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Lightning talks through warnings
def test_the_recipe_trains_a_denoiser_that_loads(trained, tmp_path, monkeypatch):
    from experiments import text_defense
    from experiments.__main__ import main

    model, words = trained
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("classifier")
    words.save_pretrained("classifier")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    main(
        [
            "fit",
            "--config",
            str(CONFIGS / "text_denoiser.yaml"),
            *("--model.classifier", "classifier", "--data.tokenizer", "classifier"),
            *("--model.heads", "2", "--model.learning_rate", "1e-3"),
            *("--trainer.max_epochs", "8", "--trainer.enable_model_summary", "false"),
        ]
    )
    text_defense.export("runs/text_denoiser/best.ckpt", "out")
    lines = (tmp_path / "runs/text_denoiser/log/metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("val_loss")
    losses = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert losses[-1] < 0.9 * losses[0], losses
    denoiser = StateDenoiser.load("out")
    defended = DiffuseDef(model, denoiser)
    texts, labels = reviews(50, seed=2)
    said = TextClassifier(defended, words)(texts).argmax(1)
    assert (said == torch.tensor(labels)).float().mean() > 0.9
    kept = torch.load("runs/text_denoiser/best.ckpt", weights_only=True)["state_dict"]
    assert all(key.startswith("denoiser.") for key in kept)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
