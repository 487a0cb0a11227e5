"""Square, DiffHammer and Kang's DiffAttack against worlds whose answer is known."""

import pytest
import torch
from torch import nn

from attacks import Linf
from attacks.adaptive import Expected, Hammer, deviated
from attacks.apgd import apgd
from attacks.losses import margin
from attacks.objectives import value_and_gradient
from attacks.square import square
from diffusion.gaussian import GaussianDenoiser
from diffusion.schedule import NoiseSchedule
from diffusion.tape import NoiseTape
from purify import DiffPure, PurifiedClassifier

IMAGES = 0.3 + 0.4 * torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.tensor([0, 1, 0])
EPS = 8 / 255


@pytest.fixture
def purifier():
    model = GaussianDenoiser(torch.zeros(3, 4, 4, dtype=torch.float64), 0.25, NoiseSchedule.linear())
    return DiffPure(model, t=100, steps=4, clamp=False)


@pytest.fixture
def classifier():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2).double())


def optimum(classifier, images, labels):
    """The purifier is affine with one gain: the best point of a linear margin is its weights' sign."""
    weights = classifier[1].weight
    towards = (weights[1 - labels] - weights[labels]).view_as(images).sign()
    return (images + EPS * towards).clamp(0, 1)


def test_hammer_reaches_the_optimum_of_an_affine_defence(purifier, classifier):
    objective = Hammer(purifier, classifier, LABELS, Linf(EPS), eps=EPS, draws=4)
    found = apgd(objective, IMAGES, Linf(EPS), eps=EPS, steps=15)
    torch.testing.assert_close(found, optimum(classifier, IMAGES, LABELS), rtol=0, atol=1e-6)


def test_one_maximisation_step_of_hammer_equals_a_naive_loop(purifier, classifier):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 9).double(), nn.Tanh(), nn.Linear(9, 3).double())
    objective = Hammer(purifier, network, LABELS, Linf(EPS), eps=EPS, draws=5, em_steps=1)
    torch.manual_seed(3)
    value, gradient = value_and_gradient(objective, IMAGES)
    torch.manual_seed(3)
    seeds = torch.randint(2**62, (5,))
    for b in range(3):
        losses, slopes = [], []
        for seed in seeds:
            point = purifier(IMAGES[b : b + 1], seed[None]).detach().requires_grad_()
            loss = margin(network(point), LABELS[b : b + 1])
            losses.append(loss.item())
            slopes.append(torch.autograd.grad(loss.sum(), point)[0])
        scores = [
            sum(
                torch.nn.functional.elu(torch.tensor(loss + EPS * (slopes[j].sign() * slope).sum().item()))
                for loss, slope in zip(losses, slopes, strict=True)
            )
            for j in range(5)
        ]
        j = int(torch.stack(scores).argmax())
        reached = [
            loss + EPS * (slopes[j].sign() * slope).sum().item()
            for loss, slope in zip(losses, slopes, strict=True)
        ]
        weights = torch.sigmoid(5 * torch.tensor(reached, dtype=torch.float64))
        grafted = sum(w * slope for w, slope in zip(weights, slopes, strict=True)) / weights.sum()
        leaf = IMAGES[b : b + 1].clone().requires_grad_()
        (expected,) = torch.autograd.grad(purifier(leaf, seeds[j : j + 1]), leaf, grafted)
        torch.testing.assert_close(gradient[b : b + 1], expected)
        assert value[b].item() == pytest.approx(sum(losses) / 5)


def test_hammers_gradient_is_a_running_mean_of_iterations(purifier, classifier):
    objective = Hammer(purifier, classifier, LABELS, Linf(EPS), eps=EPS, draws=2)
    _, first = value_and_gradient(objective, IMAGES)
    torch.manual_seed(7)
    _, second = value_and_gradient(objective, IMAGES + 0.01)
    lone = Hammer(purifier, classifier, LABELS, Linf(EPS), eps=EPS, draws=2)
    torch.manual_seed(7)
    _, fresh = value_and_gradient(lone, IMAGES + 0.01)
    recent = 2**-0.5
    torch.testing.assert_close(second, recent * fresh + (1 - recent) * first)


def test_deviation_is_its_formula_and_its_gradient_is_exact(purifier, classifier):
    seeds = torch.tensor([4, 5, 6])
    score = deviated(purifier, classifier, weight=2.0, share=1.0)

    def naive(images):
        tape, levels = NoiseTape(seeds), purifier.levels()
        state, kept = images, []
        for step in purifier.chain(seeds):
            state = step(state, images)
            kept.append(state)
        noise, z = tape.noise(1, images), 2 * images - 1
        total = 0.0
        for number in (2, 3, 4):  # the last of four steps back is clean and has nothing to deviate from
            alpha, sigma = levels[number]
            apart = (alpha * z + sigma * noise - kept[number]).square().flatten(1).mean(1)
            total = total + alpha**2 * apart / 3
        return margin(classifier(state), LABELS) + 2.0 * total

    value, gradient = value_and_gradient(lambda images: score(images, seeds, LABELS), IMAGES)
    expected_value, expected_gradient = value_and_gradient(naive, IMAGES)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradient, expected_gradient)


def test_no_weight_is_the_plain_loss(purifier, classifier):
    score, seeds = deviated(purifier, classifier, weight=0.0), torch.tensor([4, 5, 6])
    plain = margin(PurifiedClassifier(purifier, classifier)(IMAGES, seeds), LABELS)
    torch.testing.assert_close(score(IMAGES, seeds, LABELS), plain)
    expected = Expected.of(score, LABELS, draws=3, fixed=True)
    assert expected(IMAGES).shape == (3,)


def test_square_nears_the_optimum_without_gradients(classifier):
    best = margin(classifier(optimum(classifier, IMAGES, LABELS)), LABELS)
    start = margin(classifier(IMAGES), LABELS)
    generator = torch.Generator().manual_seed(0)

    def objective(images):
        assert not torch.is_grad_enabled()
        return margin(classifier(images), LABELS)

    found = square(objective, IMAGES, eps=EPS, queries=500, generator=generator)
    assert (found - IMAGES).abs().max() <= EPS + 1e-9
    gained = (margin(classifier(found), LABELS) - start) / (best - start)
    assert gained.min() > 0.8


def test_square_averages_a_random_classifier(purifier, classifier):
    model = PurifiedClassifier(purifier, classifier)
    objective = Expected(model, LABELS, draws=10, generator=torch.Generator().manual_seed(0))
    found = square(objective, IMAGES, eps=EPS, queries=60, generator=torch.Generator().manual_seed(0))
    judge = Expected(model, LABELS, draws=200, fixed=True)
    assert (judge(found) > judge(IMAGES)).all()
