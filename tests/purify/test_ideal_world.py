"""Ten pictures, their exact diffusion model, and a classifier right on them and brittle beside them."""

import pytest
import torch
from torch import nn

from attacks.adapters import attack
from attacks.evaluate import evaluate, summarise
from diffusion.ideal import IdealDenoiser
from diffusion.schedule import NoiseSchedule
from purify import GDMP, PRESETS, DiffPure, FreqPure, GridPure, ManiPure, PurifiedClassifier
from purify.frequency import radii
from purify.reverse import REVERSES

pytestmark = pytest.mark.filterwarnings("default")  # torchattacks warns of its own code

LABELS = torch.arange(10)
KEPT = 0.625
"""Share of Nyquist up to which FreqPure and ManiPure keep frequencies of the input."""
MODES = ("literal", "spatial", "spectral")
DIFFPURE = {
    **{
        name: lambda model, name=name: DiffPure(
            model, t=100, steps=None if name in ("sde", "ode") else 10, sampler=name
        )
        for name in REVERSES
    },
    **{name: lambda model, name=name: DiffPure(model, rounds=PRESETS[name]) for name in PRESETS},
    "gridpure": GridPure,
    "gdmp": GDMP,
    "gdmp-ssim": lambda model: GDMP(model, steps=9, scale=70_000.0, similarity="ssim"),
    "freqpure-denoised": lambda model: FreqPure(model, t=100, steps=10, reference="denoised"),
}
KEEPING = {
    "freqpure": lambda model: FreqPure(model, t=100, steps=10, clamp=False),
    **{f"mani-{m}": lambda model, m=m: ManiPure(model, t=100, steps=10, mode=m, clamp=False) for m in MODES},
}


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(pictures):
    return IdealDenoiser(pictures, NoiseSchedule.linear())


def brittle_classifier(pictures, *, low):
    """The pictures' pseudo-inverse, plus a large random part at low or at high frequencies that sees none."""
    flat = pictures.flatten(1).double()
    band = (radii(16, 16, flat) <= KEPT) == low

    def filtered(images):
        return torch.fft.ifft2(torch.fft.fft2(images) * band).real.flatten(1)

    seen, _ = torch.linalg.qr(filtered(pictures.double()).T)
    unseen = filtered(torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1)).double())
    unseen = unseen - unseen @ seen @ seen.T
    layer = nn.Linear(768, 10, bias=False)
    layer.weight.data = (torch.linalg.pinv(flat).T + unseen / unseen.std()).float()
    return nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[False, True], ids=["brittle-high", "brittle-low"])
def attacked(request, pictures):
    """The classifier, and the pictures after a library's PGD on it alone."""
    classifier = brittle_classifier(pictures, low=request.param)
    torch.manual_seed(0)
    found = attack("PGD", classifier, eps=4 / 255, steps=20)(pictures, LABELS)
    return request.param, classifier, found


def correct(classifier, images):
    return (classifier(images).argmax(1) == LABELS).float().mean().item()


def test_alone_it_is_right_everywhere_and_robust_nowhere(attacked, pictures):
    _, classifier, found = attacked
    torch.testing.assert_close(classifier(pictures), torch.eye(10), rtol=0, atol=1e-3)
    assert correct(classifier, found) == 0
    assert (found - pictures).abs().max() <= 4 / 255 + 1e-6


@pytest.mark.parametrize("name", DIFFPURE)
def test_a_purifier_restores_what_pgd_took(attacked, model, pictures, name):
    _, classifier, found = attacked
    purifier = DIFFPURE[name](model)
    purified = purifier(found, torch.arange(10))
    assert correct(classifier, purified) == 1
    # Euler's method ends one length before a clean picture, the others on it
    nearness = 0.03 if name in ("sde", "ode") else 1e-5
    torch.testing.assert_close(purified, pictures, rtol=0, atol=nearness)


@pytest.mark.parametrize("name", KEEPING)
def test_what_a_purifier_keeps_it_does_not_purify(attacked, model, pictures, name):
    """With low frequencies of the input kept, a perturbation of high ones goes and one of low ones stays."""
    low, classifier, found = attacked
    purified = KEEPING[name](model)(found, torch.arange(10))
    assert correct(classifier, purified) == (0 if low else 1)
    left = torch.fft.fft2(purified - pictures)
    beyond = radii(16, 16, pictures) > KEPT + 1e-6
    assert (left * beyond).abs().max() < 1e-3 * left.abs().max()


def test_the_evaluation_says_so(attacked, model, pictures):
    """Clean and robust accuracy, alone and purified, from the report and not from our own count."""
    _, classifier, found = attacked
    replay = {"pgd": lambda images, labels: found[labels]}
    purified = PurifiedClassifier(DiffPure(model, t=100, steps=10), classifier)
    for defended, robust in ((classifier, 0.0), (purified, 1.0)):
        null, pgd = summarise(evaluate(defended, pictures, LABELS, replay, draws=3))
        assert (null.average, null.worst, null.majority) == (1, 1, 1)
        assert (pgd.average, pgd.worst, pgd.majority) == (robust,) * 3
