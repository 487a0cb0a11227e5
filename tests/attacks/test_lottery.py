"""A classifier that is right by luck alone: whatever attacks it, every figure is the lottery's."""

from math import comb

import pytest
import torch
from torch import nn

from attacks import Linf, pgd
from attacks.adapters import attack
from attacks.adaptive import Expected
from attacks.apgd import apgd
from attacks.evaluate import evaluate, summarise
from attacks.lowfrequency import low_frequency
from attacks.square import square
from purify import Blur, PurifiedClassifier

pytestmark = pytest.mark.filterwarnings("default")  # torchattacks and AutoAttack warn of their own code

EPS, COUNT, DRAWS = 8 / 255, 160, 7


class Lottery(nn.Module):
    """Says class 0 with probability 0.95 of bright images and 0.6 of dark ones, by logits of 1 and -1."""

    def forward(self, images, seeds=None):
        if seeds is None:
            drawn = torch.rand(len(images))
        else:
            generators = (torch.Generator().manual_seed(int(seed)) for seed in seeds)
            drawn = torch.stack([torch.rand((), generator=generator) for generator in generators])
        said = (drawn >= chances(images)).long()
        nothing = 0 * images.flatten(1).sum(1, keepdim=True)  # a graph with nothing in it
        return 2.0 * nn.functional.one_hot(said, 5) - 1 + nothing


def chances(images):
    return torch.where(images.detach().flatten(1).mean(1) > 0.5, 0.95, 0.6)


@pytest.fixture(scope="module")
def images():
    brightness = torch.tensor([0.25, 0.75]).repeat(COUNT // 2).view(-1, 1, 1, 1)
    noise = torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return brightness + 0.2 * (noise - 0.5)


def expected(labels, **options):
    return Expected(Lottery(), labels, draws=3, **options)


def averaged_apgd(images, labels):
    objective = expected(labels, fixed=True)
    return apgd(objective, images, Linf(EPS), eps=EPS, steps=5, redraw=objective.redraw)


def far(one, other):
    return (one - other).square().flatten(1).mean(1)


ATTACKS = {
    "pgd": attack("pgd", Lottery(), eps=EPS, steps=5),
    "apgd": attack("apgd", Lottery(), eps=EPS, steps=5),
    "EOTPGD": attack("EOTPGD", Lottery(), eps=EPS, steps=5, eot_iter=3),
    "Square": attack("Square", Lottery(), eps=EPS, n_queries=20),
    "autoattack": attack("autoattack", Lottery(), eps=EPS, version="rand"),
    "averaged pgd": lambda x, y: pgd(expected(y), x, Linf(EPS), steps=5, step_size=EPS / 4),
    "averaged apgd": averaged_apgd,
    "averaged square": lambda x, y: square(expected(y), x, eps=EPS, queries=20),
    "averaged lf": lambda x, y: low_frequency(expected(y), x, far, steps=5),
}


def outcomes(images):
    """By image: the chance that one draw is right, that all are, and that most are."""
    p = chances(images).double()
    ways = range(DRAWS // 2 + 1, DRAWS + 1)
    return p, p**DRAWS, sum(comb(DRAWS, k) * p**k * (1 - p) ** (DRAWS - k) for k in ways)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_gains_and_every_figure_is_the_lotterys(images, name):
    """Attacks that stop at a lucky draw, or are judged by it, would show success."""
    labels = torch.zeros(COUNT, dtype=torch.long)
    torch.manual_seed(0)
    null, attacked = summarise(
        evaluate(Lottery(), images, labels, {name: ATTACKS[name]}, draws=DRAWS, batch_size=COUNT)
    )
    for row in (null, attacked):
        found = (row.average, row.worst, row.majority)
        for measured, chance, draws in zip(found, outcomes(images), (DRAWS, 1, 1), strict=True):
            error = ((chance * (1 - chance)).sum() / draws).sqrt().item() / COUNT
            assert measured == pytest.approx(chance.mean().item(), abs=3 * error)
    assert (null.average, null.worst, null.majority) == (attacked.average, attacked.worst, attacked.majority)


def test_a_vote_of_a_purified_lottery_is_a_binomial_tail(images):
    model = PurifiedClassifier(Blur(0.5), Lottery())
    torch.manual_seed(0)
    decided = model.predict(images, draws=DRAWS)
    p, _, elected = outcomes(images)
    error = (elected * (1 - elected)).sum().sqrt().item() / COUNT
    right = (decided.classes == 0).double().mean().item()
    assert right == pytest.approx(elected.mean().item(), abs=3 * error)
    single = (decided.counts[:, 0] / DRAWS).double().mean().item()
    error = ((p * (1 - p)).sum() / DRAWS).sqrt().item() / COUNT
    assert single == pytest.approx(p.mean().item(), abs=3 * error)
