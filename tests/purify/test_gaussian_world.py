"""On Gaussian data a purifier is affine: gradients and robust accuracy are known before they are measured."""

import math
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from torch import nn

from attacks import Linf, cross_entropy, pgd
from attacks.adaptive import BPDA, Adjoint, Checkpointed, Exact, Expected, Surrogate
from attacks.evaluate import evaluate, summarise
from diffusion.gaussian import GaussianDenoiser
from diffusion.schedule import NoiseSchedule
from purify import DiffPure, PurifiedClassifier

SIGNAL = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SETTINGS = [("ddpm", 100, 10), ("ddim", 200, 5), ("dpm-solver", 100, 10), ("sde", 75, 75), ("ode", 100, 25)]


def expected_error(signal, variances):
    """The noise predicted per unit of a noisy entry."""
    return math.sqrt(1 - signal) / (signal * variances + 1 - signal)


def affine(sampler, t, steps, variances):
    """The gain of the input and the variance added, by direction: each sampler's formula on numbers."""
    start, one = float(SIGNAL[t - 1]), torch.ones_like(variances)
    back, drawn = REVERSES[sampler](t, steps, variances)
    return math.sqrt(start) * back * one, (1 - start) * back**2 + drawn


def step_by_step(t, steps, variances, *, eta):
    """DDPM at eta = 1, DDIM at 0 (Song et al., 2021, eq. 12): factor of what was noised, variance drawn."""
    factor, variance = torch.ones_like(variances), torch.zeros_like(variances)
    for here, there in pairwise(signals(t, steps)):
        error = expected_error(here, variances)
        clean = (1 - math.sqrt(1 - here) * error) / math.sqrt(here)
        drawn = eta**2 * (1 - here / there) * (1 - there) / (1 - here)
        one = math.sqrt(there) * clean + math.sqrt(1 - there - drawn) * error
        factor, variance = factor * one, variance * one**2 + drawn
    return factor, variance


def multistep(t, steps, variances):
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2), whose last step is of first order."""
    factor, before = torch.ones_like(variances), None
    for here, there in pairwise(signals(t, steps)):
        error = expected_error(here, variances)
        clean = factor * (1 - math.sqrt(1 - here) * error) / math.sqrt(here)
        if there == 1:
            return clean, 0.0
        length = math.log(there / (1 - there) * (1 - here) / here) / 2
        ahead = clean
        if before is not None:
            ahead = clean + length / before[1] / 2 * (clean - before[0])
        shrunk = math.sqrt((1 - there) / (1 - here)) * factor
        factor, before = shrunk - math.sqrt(there) * math.expm1(-length) * ahead, (clean, length)
    raise AssertionError("the way ends at a clean picture")


def euler(t, steps, variances, *, share):
    """The VP-SDE back in time at share = 1 and its probability flow at 1/2, with DiffPure's levels."""
    factor, variance = torch.ones_like(variances), torch.zeros_like(variances)
    for number in range(steps):
        time, after = (t / 1000 * (1 - k / steps) for k in (number, number + 1))
        length, beta = time - max(after, 1e-5), 0.1 + 19.9 * time
        sigma = math.sqrt(1 - math.exp(-0.5 * 19.9 * time**2 - 0.1 * time))
        error = expected_error(float(SIGNAL[t * (steps - number) // steps]), variances)
        one = 1 + length * beta * (0.5 - share * error / sigma)
        factor, variance = factor * one, variance * one**2 + beta * length * (share == 1)
    return factor, variance


def signals(t, steps):
    """The share of signal at `{t / n, 2 t / n, ..., t}` steps into the noise, from noisy to clean."""
    return [float(SIGNAL[t * k // steps - 1]) for k in range(steps, 0, -1)] + [1.0]


REVERSES = {
    "ddpm": partial(step_by_step, eta=1),
    "ddim": partial(step_by_step, eta=0),
    "dpm-solver": multistep,
    "sde": partial(euler, share=1),
    "ode": partial(euler, share=0.5),
}


@pytest.mark.parametrize(
    ("setting", "known"),
    [(("ddpm", 100, 10), (0.685298282, 0.110131856)), (("ddim", 100, 5), (0.798257239, 0.073155201))],
    ids=str,
)
def test_the_formulas_of_this_file_give_known_constants(setting, known):
    found = affine(*setting, torch.tensor([0.25], dtype=torch.float64))
    assert [value.item() for value in found] == pytest.approx(known, abs=1e-8)


# ---- gradients

MODES = {
    "plain": lambda purifier, cheaper: purifier,
    "exact": lambda purifier, cheaper: Exact(purifier, verify=True),
    "checkpointed": lambda purifier, cheaper: Checkpointed(purifier),
    "adjoint": lambda purifier, cheaper: Adjoint(purifier),
    "surrogate": Surrogate,
    "bpda": lambda purifier, cheaper: BPDA(purifier),
}


@pytest.mark.parametrize(
    ("setting", "mode"),
    # a state that remembers the step before has no path for the adjoint to walk back
    [pair for pair in product(SETTINGS, MODES) if (pair[0][0], pair[1]) != ("dpm-solver", "adjoint")],
    ids=str,
)
def test_every_gradient_of_every_sampler_is_its_closed_form(setting, mode):
    """Along each entry, whose variance differs: the gain, the cheaper purifier's gain, or one."""
    variances = torch.linspace(0.01, 1.0, 48, dtype=torch.float64)
    model = GaussianDenoiser(torch.zeros(3, 4, 4, dtype=torch.float64), variances, NoiseSchedule.linear())
    sampler, t, steps = setting
    purifier = DiffPure(model, t=t, steps=steps, sampler=sampler, clamp=False)
    cheaper = DiffPure(model, t=50, steps=2, sampler="ddim", clamp=False)
    gains = {"surrogate": affine("ddim", 50, 2, variances)[0], "bpda": torch.ones_like(variances)}
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    seeds, cotangent = torch.tensor([3, 4]), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    purified = MODES[mode](purifier, cheaper)(images, seeds)
    torch.testing.assert_close(purified, purifier(images, seeds))
    (found,) = torch.autograd.grad(purified, images, cotangent)
    gain = gains.get(mode, affine(*setting, variances)[0]).view(3, 4, 4)
    torch.testing.assert_close(found, gain * cotangent, rtol=1e-6, atol=1e-9)


# ---- robust accuracy

EPS, DRAWS, COUNT = 8 / 255, 11, 300
T, STEPS = 100, 5


class Threshold(nn.Module):
    """Class 1 where the weighted sum of an image, taken from the grey one, is positive."""

    def __init__(self, weights):
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, images):
        score = (images - 0.5).flatten(1) @ self.weights
        return torch.stack([-score, score], 1)


def normal(x):
    return torch.special.ndtr(x)


@pytest.fixture(scope="module")
def world():
    """Pictures vary along a quarter of all directions; the classifier looks mostly along the others."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis, _ = torch.linalg.qr(draw(48, 48))
    variances = torch.cat([torch.full((12,), 0.36), torch.full((36,), 1e-4)]).double()
    mean = torch.zeros(3, 4, 4, dtype=torch.float64)
    model = GaussianDenoiser(mean, variances, NoiseSchedule.linear(), basis=basis)
    along = torch.cat([torch.full((12,), 0.5), torch.full((36,), 1.0)]).double() * draw(48).sign()
    z = (draw(COUNT, 48) * variances.sqrt()) @ basis.T
    images = ((z + 1) / 2).clamp(0.1, 0.9).view(COUNT, 3, 4, 4)
    classifier = Threshold(basis @ along)
    labels = classifier(images).argmax(1)
    gain, variance = affine("ddpm", T, STEPS, variances)
    return {
        "model": model,
        "images": images,
        "labels": labels,
        "classifier": classifier,
        "weights": basis @ along,
        "purified weights": basis @ (gain * along),
        "noise": float((variance * along**2).sum().sqrt() / 2),
    }


def attacks_on(world):
    """Each attack, and the direction in which it moves pictures of class 0."""
    purifier = DiffPure(world["model"], t=T, steps=STEPS, clamp=False)
    # one step back, of which the affine map has another size and the same direction
    cheaper = DiffPure(world["model"], t=T, steps=1, clamp=False)

    def ascend(objective, images):
        return pgd(objective, images, Linf(EPS), steps=4, step_size=EPS)

    def through(gradient):
        model = PurifiedClassifier(gradient, world["classifier"])
        return lambda images, labels: ascend(Expected(model, labels, draws=1), images)

    bare, purified = world["weights"].sign(), world["purified weights"].sign()
    return purifier, {
        "transfer": (lambda x, y: ascend(cross_entropy(world["classifier"], y), x), bare),
        "bpda": (through(BPDA(purifier)), bare),
        "surrogate": (through(Surrogate(purifier, cheaper)), purified),
        "exact": (through(Exact(purifier)), purified),
    }


def test_robust_accuracy_is_its_closed_form(world):
    """A margin falls by what a step of eps does to it; noise turns what is left into a probability."""
    purifier, attacks = attacks_on(world)
    model = PurifiedClassifier(purifier, world["classifier"])
    run = {name: attack for name, (attack, _) in attacks.items()}
    records = evaluate(model, world["images"], world["labels"], run, draws=DRAWS, batch_size=COUNT)
    rows = {row.attack: row for row in summarise(records)}
    sides = 2.0 * world["labels"] - 1
    margins = sides * ((world["images"] - 0.5).flatten(1) @ world["purified weights"])
    falls = {name: EPS * float(world["purified weights"] @ way) for name, (_, way) in attacks.items()}
    figures = {}
    for name, fall in {"null": 0.0, **falls}.items():
        right = normal((margins - fall) / world["noise"])
        elected = sum(math.comb(DRAWS, k) * right**k * (1 - right) ** (DRAWS - k) for k in range(6, 12))
        figures[name] = (right, right**DRAWS, elected)
        found = (rows[name].average, rows[name].worst, rows[name].majority)
        for kind, probability, draws, measured in zip(
            ("average", "worst", "majority"), figures[name], (DRAWS, 1, 1), found, strict=True
        ):
            error = ((probability * (1 - probability)).sum() / draws).sqrt().item() / COUNT
            assert measured == pytest.approx(probability.mean().item(), abs=3 * error), (name, kind)
    assert rows["exact"].linf == pytest.approx(8, abs=1e-3)


def test_the_world_is_one_in_which_the_attack_matters(world):
    """Alone the classifier falls; behind the purifier the exact gradient does what BPDA cannot."""
    purifier, attacks = attacks_on(world)
    images, labels = world["images"], world["labels"]
    moved = attacks["transfer"][0](images, labels)
    assert (world["classifier"](moved).argmax(1) == labels).double().mean() < 0.05
    model = PurifiedClassifier(purifier, world["classifier"])
    run = {name: attacks[name][0] for name in ("bpda", "exact")}
    rows = {row.attack: row for row in summarise(evaluate(model, images, labels, run, draws=DRAWS))}
    assert rows["exact"].average < rows["bpda"].average - 0.1 < rows["null"].average - 0.1
    assert rows["exact"].majority > rows["exact"].average > rows["exact"].worst
