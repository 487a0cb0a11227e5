import sys

import pytest
import torch
from torch import nn

from attacks import Linf
from attacks.adapters import attack
from attacks.ball import L2
from attacks.losses import cross_entropy
from purify import Quantize

pytestmark = pytest.mark.filterwarnings("default")  # torchattacks and AutoAttack warn of their own code

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Tanh(), nn.Linear(12, 10)).eval()


@pytest.fixture(scope="module")
def labels(model):
    return model(IMAGES).argmax(1)


NAMES = ["pgd", "apgd", "PGD", "FGSM", "mifgsm", "TPGD", "APGD", "Square", "EOTPGD", "DIFGSM"]


@pytest.mark.parametrize("name", NAMES)
def test_attacks_by_name_stay_in_the_ball_and_do_harm(model, labels, name):
    options = {"n_queries": 50} if name == "Square" else {"steps": 5} if name != "FGSM" else {}
    found = attack(name, model, eps=8 / 255, **options)(IMAGES, labels)
    assert (found - IMAGES).abs().max() <= 8 / 255 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert cross_entropy(model(found), labels).mean() > cross_entropy(model(IMAGES), labels).mean()


@pytest.mark.parametrize("name", ["apgd", "PGDL2", "pgd"])
def test_l2_attacks_stay_in_the_l2_ball(model, labels, name):
    found = attack(name, model, eps=0.5, norm="L2", steps=5)(IMAGES, labels)
    assert L2(0.5).distance(found - IMAGES).max() <= 0.5 + 1e-5


def test_our_pgd_equals_torchattacks(model, labels):
    """Same start, same steps, same loss: the same images."""
    options = {"steps": 7, "random_start": False}
    ours = attack("pgd", model, eps=8 / 255, step_size=2 / 255, **options)(IMAGES, labels)
    import torchattacks

    theirs = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, **options)(IMAGES, labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_autoattack_runs_its_full_length_and_gives_the_trace_back(model, labels):
    def tracer(frame, event, argument):
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        found = attack("autoattack", model, eps=0.1, version="rand")(IMAGES, labels)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert Linf(0.1).distance(found - IMAGES).max() <= 0.1 + 1e-6
    assert (model(found).argmax(1) == labels).float().mean() < 1


def test_parts_of_autoattack_are_those_of_its_standard_version(model, labels):
    from pyautoattack import AutoAttack

    parts = ["apgd-ce", "apgd-t"]
    ours = attack("autoattack", model, eps=0.03, attacks=parts)(IMAGES, labels)
    own = AutoAttack(model, eps=0.03, version="custom", attacks=parts, seed=0)
    own.apgd.n_restarts = 1  # as in the standard version
    theirs = own.run_standard_evaluation(IMAGES, labels, batch_size=128)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"no part 'apgd-dlr'; it has apgd-ce, apgd-t, fab-t, square"):
        attack("autoattack", model, attacks=["apgd-dlr"])(IMAGES, labels)


def test_autoattacks_deterministic_versions_refuse_a_random_classifier(labels):
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(192, 10)

        def forward(self, images):
            return self.layer(images.flatten(1)) + torch.randn(len(images), 10)

    with pytest.raises(ValueError, match="not valid on a random classifier"):
        attack("autoattack", Random())(IMAGES, labels)


def test_cw_moves_black_and_white_pixels_too(model, labels):
    """In tanh coordinates they lie at infinity, where the library's gradient is zero."""
    extreme = IMAGES.round()
    truth = model(extreme).argmax(1)
    found = attack("CW", model, c=10, steps=150, lr=0.1)(extreme, truth)
    fooled = model(found).argmax(1) != truth
    assert fooled.any()
    assert ((found - extreme).abs().flatten(1).amax(1)[fooled] > 1e-3).all()


@pytest.mark.parametrize("name", ["pgd", "FGSM", "CW"])
def test_a_purifier_in_front_changes_nothing_for_a_library(model, labels, name):
    defended = nn.Sequential(Quantize(5), model)
    found = attack(name, defended, **({"steps": 3} if name != "FGSM" else {}))(IMAGES, labels)
    assert found.shape == IMAGES.shape
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pdg", {}, "unknown attack 'pdg'; did you mean 'pgd'"),
        ("pgd", {"norm": "L1"}, "norm must be 'Linf' or 'L2'"),
        ("mifgsm", {"norm": "L2"}, "MIFGSM is an Linf attack"),
        ("mifgsm", {"setps": 3}, "MIFGSM has no option 'setps'; available: eps"),
    ],
)
def test_mistakes_are_told_in_one_line(model, name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        attack(name, model, **options)
    assert "\n" not in str(caught.value)
