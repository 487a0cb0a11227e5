"""Losses against their formulas written out, in float64, and their gradients against finite differences."""

import math

import pytest
import torch
from torch.nn import functional as F

from distill import losses

BATCH, CLASSES = 6, 10


@pytest.fixture
def logits(generator):
    """Draw logits of a batch that require a gradient."""
    return lambda classes=CLASSES: (
        2 * torch.randn(BATCH, classes, generator=generator, dtype=torch.float64)
    ).requires_grad_()


LABELS = torch.tensor([0, 3, 9, 3, 7, 1])


def softmax(row, temperature=1.0):
    top = max(row)
    raised = [math.exp((value - top) / temperature) for value in row]
    return [value / sum(raised) for value in raised]


def divergence(target, logits, temperature=1.0, target_temperature=None):
    """KL of each image, in plain Python."""
    found = []
    for one, other in zip(target.tolist(), logits.tolist(), strict=True):
        p, q = softmax(one, target_temperature or temperature), softmax(other, temperature)
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return torch.tensor(found, dtype=torch.float64)


def surprise(logits, labels):
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return torch.tensor([-math.log(softmax(row)[label]) for row, label in rows], dtype=torch.float64)


def true_class(logits):
    rows = zip(logits.tolist(), LABELS.tolist(), strict=True)
    return torch.tensor([softmax(row)[label] for row, label in rows], dtype=torch.float64)


def assert_loss(terms, expected):
    assert all(values.shape == (BATCH,) for values in terms.values())
    torch.testing.assert_close(losses.total(terms).detach(), expected, atol=1e-9, rtol=1e-9)


def follows(loss, inputs):
    """Whether the gradient agrees with finite differences."""
    return torch.autograd.gradcheck(lambda *given: loss(*given).sum(), inputs, atol=1e-6)


# ---- divergence


def test_the_divergence_is_that_of_the_formula_and_of_pytorch(logits):
    p, q = logits(), logits()
    torch.testing.assert_close(losses.kl(p, q).detach(), divergence(p, q))
    library = F.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(losses.kl(p, q), library)
    assert not torch.allclose(losses.kl(p, q), losses.kl(q, p))
    warm = losses.kl(p, q, temperature=1.0, target_temperature=3.0)
    torch.testing.assert_close(warm.detach(), divergence(p, q, 1.0, 3.0))


def test_the_target_of_a_divergence_learns_only_if_it_is_told_to(logits):
    p, q = logits(), logits()
    assert torch.autograd.grad(losses.kl(p, q).sum(), p, allow_unused=True)[0] is None
    assert follows(lambda a, b: losses.kl(a, b, detach_target=False), (p, q))
    assert follows(lambda b: losses.kl(p, b, temperature=3.0), (q,))


def test_half_precision_logits_are_widened():
    p, q = torch.randn(2, 4, CLASSES).bfloat16()
    assert losses.kl(p, q).dtype == torch.float32
    huge = torch.tensor([[1e4, -1e4, 0.0]]).half()
    assert torch.isfinite(losses.kl(huge, -huge)).all()


@pytest.mark.parametrize("classes", [10, 100])
def test_the_scale_of_a_tenth_is_a_mean_over_images_and_classes_for_ten(logits, classes):
    p, q = logits(classes), logits(classes)
    terms = losses.rslad(p, q, q, kl_scale=0.1)
    over_everything = F.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").mean()
    torch.testing.assert_close(losses.total(terms).mean(), over_everything * classes / 10)


# ---- methods


def test_adversarial_training_is_cross_entropy_with_hard_and_soft_labels(logits):
    x = logits()
    assert_loss(losses.pgd_at(x, LABELS), surprise(x, LABELS))
    soft = F.one_hot(LABELS, CLASSES).double() * 0.9 + 0.01
    expected = torch.stack([surprise(x, torch.full((BATCH,), c)) for c in range(CLASSES)], 1)
    assert_loss(losses.pgd_at(x, soft), (soft * expected).sum(1))


def test_trades_is_its_formula_and_learns_through_both_branches(logits):
    x, adversarial = logits(), logits()
    expected = surprise(x, LABELS) + 6 * divergence(x, adversarial)
    assert_loss(losses.trades(x, adversarial, LABELS), expected)
    assert follows(lambda a, b: losses.total(losses.trades(a, b, LABELS, beta=2.0)), (x, adversarial))


def test_detaching_the_target_of_trades_turns_its_gradient():
    """Two classes and a linear model with weight w: the closed form of both gradients."""
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x, moved, beta = 1.0, -0.4, 6.0

    def gradient(detach):
        def two(value):
            return torch.stack([torch.zeros_like(w), w * value])[None]

        loss = losses.trades(two(x), two(moved), torch.tensor([1]), beta=beta, detach_target=detach)
        return torch.autograd.grad(losses.total(loss).sum(), w)[0]

    p, q = torch.sigmoid(w.detach() * x), torch.sigmoid(w.detach() * moved)
    natural = -(1 - p) * x
    through_adversarial = (q - p) * moved
    through_clean = p * (1 - p) * x * (w.detach() * x - w.detach() * moved)
    torch.testing.assert_close(gradient(True), natural + beta * through_adversarial)
    torch.testing.assert_close(gradient(False), natural + beta * (through_adversarial + through_clean))
    assert through_clean.abs() > 0.05


def test_mart_is_its_formula_and_never_takes_the_label_for_the_runner_up(logits):
    x, adversarial = logits(), logits()
    others = []
    for row, label in zip(adversarial.tolist(), LABELS.tolist(), strict=True):
        p = softmax(row)
        others.append(max(value for place, value in enumerate(p) if place != label))
    runner_up = torch.tensor(others, dtype=torch.float64)
    boosted = surprise(adversarial, LABELS) - (1.0001 - runner_up + 1e-12).log()
    robust = divergence(x, adversarial) * (1.0000001 - true_class(x))
    assert_loss(losses.mart(x, adversarial, LABELS), boosted + 5 * robust)
    assert follows(lambda a, b: losses.total(losses.mart(a, b, LABELS)), (x, adversarial))


def test_mart_gives_no_weight_to_the_divergence_where_the_clean_prediction_is_certain(logits):
    certain = 200 * F.one_hot(LABELS, CLASSES).double()
    terms = losses.mart(certain, logits(), LABELS)
    assert terms["misclassified"].abs().max() < 1e-3 < divergence(certain, logits()).min()


def test_ard_is_its_formula_and_with_alpha_one_knows_no_labels(logits):
    teacher, clean, adversarial = logits(), logits(), logits()
    expected = 900 * divergence(teacher, adversarial, 30.0)
    assert_loss(losses.ard(teacher, clean, adversarial, LABELS), expected)
    other = losses.ard(teacher, clean, adversarial, (LABELS + 1) % CLASSES)
    assert_loss(other, expected)
    mixed = losses.ard(teacher, clean, adversarial, LABELS, alpha=0.75, temperature=4.0, kl_scale=0.1)
    expected = 0.75 * 16 * 0.1 * divergence(teacher, adversarial, 4.0) + 0.25 * surprise(clean, LABELS)
    assert_loss(mixed, expected)


def test_the_gradient_of_ard_has_a_limit_as_the_temperature_grows(logits):
    """softmax is linear there: (z - mean z) - (t - mean t), over the classes."""
    teacher, student = logits(), logits()
    terms = losses.ard(teacher, student, student, LABELS, temperature=1e4)
    gradient = torch.autograd.grad(losses.total(terms).sum(), student)[0]
    centred = [each - each.mean(1, keepdim=True) for each in (student.detach(), teacher.detach())]
    torch.testing.assert_close(gradient, (centred[0] - centred[1]) / CLASSES, atol=1e-3, rtol=1e-3)


def test_iad_is_its_formula_in_both_forms(logits):
    robust, natural, seen = logits(), logits(), logits()
    clean, adversarial = logits(), logits()
    trusted = losses.trust(seen, LABELS)
    torch.testing.assert_close(trusted, true_class(seen) ** 0.1)
    assert not trusted.requires_grad
    own = divergence(clean, adversarial)
    one = losses.iad(robust, clean, adversarial, trusted, temperature=2.0)
    assert_loss(one, 4 * divergence(robust, adversarial, 2.0) + (1 - trusted) * own)
    two = losses.iad_two(seen, natural, clean, adversarial, LABELS, trusted)
    expected = (
        0.25 * surprise(adversarial, LABELS)
        + 0.5 * (trusted * divergence(seen, adversarial) + (1 - trusted) * own)
        + 0.25 * divergence(natural, adversarial)
    )
    assert_loss(two, expected)
    assert follows(lambda a, b: losses.total(losses.iad(robust, a, b, trusted)), (clean, adversarial))


def test_akd2_is_iad_that_trusts_its_teacher(logits):
    robust, natural, clean, adversarial = logits(), logits(), logits(), logits()
    terms = losses.iad_two(
        robust, natural, clean, adversarial, LABELS, torch.ones(BATCH, dtype=torch.float64)
    )
    expected = (
        0.25 * surprise(adversarial, LABELS)
        + 0.5 * divergence(robust, adversarial)
        + 0.25 * divergence(natural, adversarial)
    )
    assert_loss(terms, expected)


def test_rslad_is_its_formula_and_nothing_for_a_student_that_is_the_teacher(logits):
    teacher, clean, adversarial = logits(), logits(), logits()
    expected = 0.1 * (5 / 6 * divergence(teacher, adversarial) + 1 / 6 * divergence(teacher, clean))
    assert_loss(losses.rslad(teacher, clean, adversarial), expected)
    assert losses.total(losses.rslad(teacher, teacher, teacher)).abs().max() < 1e-12
    assert follows(lambda a, b: losses.total(losses.rslad(teacher, a, b)), (clean, adversarial))


def test_ada_ad_is_its_formula(logits):
    seen, teacher, clean, adversarial = logits(), logits(), logits(), logits()
    terms = losses.ada_ad(seen, teacher, clean, adversarial)
    assert_loss(terms, 0.1 * divergence(seen, adversarial))
    mixed = losses.ada_ad(seen, teacher, clean, adversarial, alpha=0.6, kl_scale=1.0)
    assert_loss(mixed, 0.6 * divergence(seen, adversarial) + 0.4 * divergence(teacher, clean))


def test_the_terms_of_two_teachers_are_their_formulas(logits):
    robust, natural, clean, adversarial = logits(), logits(), logits(), logits()
    terms = losses.two_teachers(robust, natural, clean, adversarial)
    torch.testing.assert_close(terms["robust"].detach(), 0.1 * divergence(robust, adversarial))
    torch.testing.assert_close(terms["natural"].detach(), 0.1 * divergence(natural, clean))
    warm = losses.two_teachers(
        robust, natural, clean, adversarial, robust_temperature=2.0, natural_temperature=torch.tensor(5.0)
    )
    torch.testing.assert_close(warm["robust"].detach(), 0.1 * divergence(robust, adversarial, 1.0, 2.0))
    torch.testing.assert_close(warm["natural"].detach(), 0.1 * divergence(natural, clean, 1.0, 5.0))


def test_entropy_is_that_of_the_formula(logits):
    x = logits()
    expected = []
    for row in x.tolist():
        p = softmax(row, 2.0)
        expected.append(-sum(value * math.log(value + 1e-5) for value in p))
    found = losses.entropy(x, 2.0).detach()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    flat = losses.entropy(torch.zeros(1, CLASSES, dtype=torch.float64))
    torch.testing.assert_close(
        flat, torch.tensor([math.log(CLASSES)], dtype=torch.float64), atol=2e-4, rtol=0
    )


def test_misalignment_is_one_minus_the_cosine_and_nothing_where_there_is_no_angle(generator):
    here, there = (torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    here[2], there[3] = -3 * there[2], 0
    here, there = here.requires_grad_(), there.requires_grad_()
    expected = []
    for one, other in zip(here.flatten(1).tolist(), there.flatten(1).tolist(), strict=True):
        length = math.hypot(*one) * math.hypot(*other)
        product = sum(a * b for a, b in zip(one, other, strict=True))
        expected.append(1 - product / length if length else 0.0)
    found = losses.misalignment(here, there)
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64))
    assert float(found[2].detach()) == pytest.approx(2)
    slopes = torch.autograd.grad(found.sum(), (here, there))
    assert all(slope.isfinite().all() and not slope[3].any() for slope in slopes)
    assert follows(losses.misalignment, tuple(part.detach()[:3].requires_grad_() for part in (here, there)))


def test_rectified_labels_trust_what_is_right_and_not_what_is_confidently_wrong(logits):
    average = logits()
    found = losses.rectified(average, LABELS, temperature=1.5, confidence=0.8)
    assert not found.requires_grad
    torch.testing.assert_close(found.sum(1), torch.ones(BATCH, dtype=torch.float64))
    for row, label, labels in zip(average.tolist(), LABELS.tolist(), found, strict=True):
        p = softmax(row, 1.5)
        share = min(max(0.8 - (max(p) - p[label]), 0.0), 1.0)
        expected = [share * value + (1 - share) * (place == label) for place, value in enumerate(p)]
        torch.testing.assert_close(labels, torch.tensor(expected, dtype=torch.float64))
    wrong = torch.tensor([[0.05, 0.9, 0.05]]).log()
    sure = losses.rectified(wrong, torch.tensor([0]), temperature=1.0, confidence=0.7)
    torch.testing.assert_close(sure, torch.tensor([[1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("confidence", [0.7, 0.95, 1.0])
def test_a_rectified_label_never_prefers_the_wrong_class(confidence):
    generator = torch.Generator().manual_seed(1)
    average = 5 * torch.randn(500, CLASSES, generator=generator)
    labels = torch.randint(0, CLASSES, (500,), generator=generator)
    found = losses.rectified(average, labels, temperature=1.0, confidence=confidence)
    true = found.gather(1, labels[:, None])
    assert (true >= found.amax(1, keepdim=True) - 1e-5).all()


def test_soft_labels_are_the_teacher_at_a_temperature(logits):
    teacher = logits()
    found = losses.soft_labels(teacher, temperature=3.0)
    torch.testing.assert_close(found[2], torch.tensor(softmax(teacher[2].tolist(), 3.0), dtype=torch.float64))
    assert not found.requires_grad
