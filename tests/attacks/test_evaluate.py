import json
from math import comb

import pytest
import torch
from torch import nn

from attacks import Linf, cross_entropy, pgd
from attacks.checks import model_doubts, row_doubts
from attacks.evaluate import Row, evaluate, read_records, summarise, table

N = 400


class Luck(nn.Module):
    """Right with the probability that the image's first pixel says, whatever an attacker does to the rest."""

    def forward(self, images, seeds):
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        draws = torch.stack([torch.rand((), generator=generator) for generator in generators])
        right = draws < images[:, 0, 0, 0]
        return torch.stack([right, ~right], 1).float()


@pytest.fixture(scope="module")
def lucky():
    images = torch.rand(N, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = torch.linspace(0.5, 1.0, N)
    return images, torch.zeros(N, dtype=torch.long)


def by_attack(records):
    return {row.attack: row for row in summarise(records)}


def perturb(images, labels):
    moved = (images + 0.03).clamp(0, 1)
    moved[:, 0, 0, 0] = images[:, 0, 0, 0]
    return moved


def test_a_lottery_scores_what_it_is_and_attacks_change_nothing(lucky):
    """Average p, worst of N E[p^N], majority a binomial tail; and the null row is the attacked row."""
    images, labels = lucky
    p = images[:, 0, 0, 0].double()
    rows = by_attack(evaluate(Luck(), images, labels, {"shift": perturb}, draws=5))
    majority = sum(comb(5, k) * p**k * (1 - p) ** (5 - k) for k in (3, 4, 5))
    for row in (rows["null"], rows["shift"]):
        assert row.average == pytest.approx(p.mean().item(), abs=0.02)
        assert row.worst == pytest.approx((p**5).mean().item(), abs=0.05)
        assert row.majority == pytest.approx(majority.mean().item(), abs=0.04)
    assert rows["null"].average == rows["shift"].average  # the same draws judge both
    assert rows["shift"].linf == pytest.approx(0.03 * 255, abs=0.01)


def test_the_worst_of_several_attacks_is_no_better_than_luck(lucky):
    """Choosing among ten do-nothing attacks by the draws that score them would look like success."""
    images, labels = lucky
    many = {f"shift-{k}": perturb for k in range(4)}
    rows = by_attack(evaluate(Luck(), images, labels, many, draws=3))
    assert rows["worst of all"].average == pytest.approx(rows["null"].average, abs=0.02)


def test_an_attack_of_another_bound_has_a_row_and_no_part_in_the_worst(lucky):
    images, model = lucky[0][:40], linear_classifier()
    labels = model(images).argmax(1)
    black = {"black": lambda batch, truth: 0 * batch, "one": perturb, "other": perturb}

    def distance(one, reference):
        return (one - reference).abs().flatten(1).mean(1)

    records = evaluate(model, images, labels, black, draws=2, lpips=distance)
    rows = {row.attack: row for row in summarise(records, apart=["black"])}
    assert rows["black"].average < rows["one"].average
    assert rows["worst of all"].average == rows["one"].average
    assert by_attack(records)["worst of all"].average < rows["one"].average
    assert rows["black"].lpips == pytest.approx(images.flatten(1).mean(1).max().item(), abs=1e-4)
    assert rows["black"].l2 == pytest.approx(images.flatten(1).norm(dim=1).max().item(), abs=1e-4)
    assert "| linf | l2 | lpips | seconds |" in table(list(rows.values()))
    assert "lpips" not in table(summarise(evaluate(model, images, labels, black, draws=2)))


def test_results_do_not_depend_on_the_batch(lucky):
    images, labels = lucky
    one = evaluate(Luck(), images[:40], labels[:40], {}, draws=3, batch_size=7)
    other = evaluate(Luck(), images[:40], labels[:40], {}, draws=3, batch_size=40)
    assert [a.predictions for a in one] == [b.predictions for b in other]


def test_a_stopped_evaluation_goes_on_where_it_was(lucky, tmp_path):
    images, labels = lucky[0][:20], lucky[1][:20]
    calls, path = [], tmp_path / "records.jsonl"

    def attack(batch, truth):
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return perturb(batch, truth)

    settings = {"draws": 3, "batch_size": 5, "record": path, "settings": {"eps": 8}}
    with pytest.raises(KeyboardInterrupt):
        evaluate(Luck(), images, labels, {"shift": attack}, **settings)
    with path.open("a") as file:
        file.write('{"index": 19, "lab')  # killed while writing
    assert len(read_records(path)) == 30
    with path.open("a") as file:
        file.write("\n")
    records = evaluate(Luck(), images, labels, {"shift": attack}, **settings)
    assert calls == [5, 5, 5, 5, 5]  # two batches, the interrupted one, and the two that were missing
    fresh = evaluate(Luck(), images, labels, {"shift": perturb}, draws=3, settings={"eps": 8})
    assert [a.predictions for a in records] == [b.predictions for b in fresh]
    again = evaluate(Luck(), images, labels, {"shift": attack}, **{**settings, "settings": {"eps": 4}})
    assert len(calls) == 9
    assert again[0].settings != records[0].settings
    assert all(json.loads(line) for line in path.read_text().splitlines() if line.endswith("}"))


def linear_classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def test_a_deterministic_classifier_under_pgd(lucky):
    images, model = lucky[0], linear_classifier()
    labels = model(images).argmax(1)

    def attack(batch, truth):
        return pgd(cross_entropy(model, truth), batch, Linf(0.1), steps=10, step_size=0.02)

    rows = by_attack(evaluate(model, images, labels, {"pgd": attack}, draws=2))
    assert rows["null"].average == rows["null"].worst == rows["null"].majority == 1
    with torch.no_grad():
        expected = (model(attack(images, labels)).argmax(1) == labels).float().mean().item()
    assert rows["pgd"].average == pytest.approx(expected, abs=1e-6)
    assert rows["pgd"].worst == rows["pgd"].majority == rows["pgd"].average
    printed = table(list(rows.values()))
    assert f"| pgd | {N} | {100 * expected:.1f} ± " in printed
    assert "| null | 400 | 100.0 ± 0.0 |" in printed


@pytest.mark.parametrize(
    ("images", "labels", "draws", "message"),
    [
        (torch.rand(2, 3, 2, 2) * 2 - 1.5, [0, 0], 2, r"lie in \[0, 1\]"),
        (torch.rand(2, 3, 2, 2), [0], 2, "one label per image"),
        (torch.rand(2, 3, 2, 2), [0, 0], 0, "at least one draw"),
    ],
)
def test_bad_input_is_refused(images, labels, draws, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Luck(), images, torch.tensor(labels), {}, draws=draws)


def test_an_attack_that_returns_nonsense_is_refused(lucky):
    images, labels = lucky[0][:2], lucky[1][:2]
    with pytest.raises(ValueError, match="'broken' returned images of another shape, or not finite"):
        evaluate(Luck(), images, labels, {"broken": lambda x, y: x * torch.nan}, draws=1)


# ---- doubts


def test_a_random_classifier_is_noticed(lucky):
    doubts = model_doubts(Luck(), lucky[0][:50], lucky[1][:50])
    assert any("randomised" in doubt for doubt in doubts)
    assert any("gives no gradient" in doubt for doubt in doubts)


def test_an_honest_classifier_raises_no_doubt(lucky):
    assert model_doubts(linear_classifier().eval(), lucky[0][:50], lucky[1][:50]) == []


def test_probabilities_training_mode_and_saturation_are_noticed(lucky):
    images, labels = lucky[0][:50], lucky[1][:50]
    model = nn.Sequential(linear_classifier(), nn.Dropout(0.0), nn.Softmax(1)).train()
    doubts = model_doubts(model, images, labels)
    assert any("probabilities" in doubt for doubt in doubts)
    assert any("model.eval()" in doubt for doubt in doubts)

    class Scaled(nn.Module):
        def forward(self, x):
            return 1e6 * linear(x)

    linear = linear_classifier()
    masked = model_doubts(Scaled(), images, linear(images).argmax(1))
    assert any("gradient of the cross entropy is zero for" in doubt for doubt in masked)
    assert not any("gradient of the margin" in doubt for doubt in masked)


def row(attack, average):
    return Row(attack, 500, 10, average, average, average, (0.04, 0.04, 0.04), 8.0, 1.0, None, 1.0)


def test_impossible_orders_are_noticed():
    honest = [row("null", 0.9), row("transfer", 0.8), row("bpda", 0.7), row("exact", 0.4)]
    assert row_doubts(honest) == []
    (missing,) = row_doubts(honest[1:])
    assert missing.startswith("there is no null row")
    (masked,) = row_doubts([row("null", 0.9), row("transfer", 0.4), row("exact", 0.7)])
    assert masked.startswith("transfer (40.0 %) beats exact (70.0 %)")
    (backwards,) = row_doubts([row("null", 0.5), row("exact", 0.7)])
    assert "runs the wrong way" in backwards
