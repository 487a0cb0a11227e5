"""Augmentations that are learned: what they do to images, and when and where their strengths climb."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill import methods
from distill.augmentor import LIMITS, Augmentor, slope
from distill.draws import Draws, generator_of
from distill.method import Step

NAMES = [*LIMITS]


@pytest.fixture
def images(generator):
    return F.interpolate(torch.rand(3, 3, 5, 5, generator=generator), size=24, mode="bilinear")


def only(name, amount, count=3):
    noise = torch.zeros(count, len(NAMES))
    noise[:, NAMES.index(name)] = amount
    return noise


ONES = torch.ones(len(NAMES))


def test_without_strength_nothing_changes(images):
    changed = Augmentor(share=0)(images, torch.randn(3, len(NAMES)))
    torch.testing.assert_close(changed, images, atol=1e-5, rtol=1e-5)


def test_each_strength_does_what_its_name_says(images):
    augmentor = Augmentor()
    torch.testing.assert_close(
        augmentor(images, only("brightness", 0.1), ONES), (images + 0.1).clamp(0, 1), atol=1e-5, rtol=1e-5
    )
    contrasted = augmentor(images, only("contrast", -0.5), ONES)
    assert contrasted.std() < images.std()
    torch.testing.assert_close(contrasted.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-4, rtol=1e-4)
    gray = augmentor(images, only("saturation", -20.0), ONES)
    torch.testing.assert_close(gray[:, 0], gray[:, 2], atol=1e-5, rtol=1e-5)
    # a quarter turn, and six pixels of twenty-four
    turned = augmentor(images, only("rotation", torch.pi / 2), ONES)
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), atol=1e-4, rtol=1e-4)
    moved = augmentor(images, only("shift across", 0.25), ONES)
    torch.testing.assert_close(moved[..., :18], images[..., 6:], atol=1e-4, rtol=1e-4)
    down = augmentor(images, only("shift down", 0.25), ONES)
    torch.testing.assert_close(down[..., :18, :], images[..., 6:, :], atol=1e-4, rtol=1e-4)


def test_the_slope_of_strengths_is_that_of_finite_differences(images):
    torch.manual_seed(0)
    augmentor, noise = Augmentor(share=0.3).double(), torch.randn(3, len(NAMES)).double()
    weights = torch.randn(images.shape).double()

    def objective(strengths):
        return (weights * augmentor(images.double(), noise, strengths)).mean((1, 2, 3))

    found = slope(objective, augmentor.strengths)
    for place in range(len(NAMES)):
        nudge = torch.zeros(len(NAMES)).double()
        nudge[place] = 1e-6
        there, back = (objective(augmentor.strengths + sign * nudge).mean() for sign in (1, -1))
        assert float(found[place]) == pytest.approx(float((there - back) / 2e-6), rel=1e-3, abs=1e-6)


def test_strengths_climb_within_their_limits():
    augmentor = Augmentor(share=0.5)
    gradient = torch.tensor([1.0, -1.0] * 4)
    augmentor.climb(gradient, 0.1)
    limits = torch.tensor([*LIMITS.values()])
    torch.testing.assert_close(augmentor.strengths, limits * torch.tensor([0.6, 0.4] * 4))
    for _ in range(20):
        augmentor.climb(gradient, 0.1)
    torch.testing.assert_close(augmentor.strengths, limits * torch.tensor([1.0, 0.0] * 4))


def test_it_climbs_above_one_threshold_and_rests_below_another():
    augmentor, seen = Augmentor(), []
    for agreement in (0.5, 0.7, 0.5, 0.3, 0.5, 0.61):
        augmentor.decide(torch.tensor(agreement), above=0.6, below=0.4)
        seen.append(bool(augmentor.climbing))
    assert seen == [False, True, True, False, False, True]


def made(student, teacher, images, state=None, seed=0):
    method = methods.Hard(temperature=2.0)
    step = Step(
        student,
        images,
        torch.zeros(len(images), dtype=torch.long),
        Draws(generator_of(seed)),
        teachers={"natural": teacher},
        state=state or method.new_state(),
    )
    return method, step


def test_the_student_follows_the_teacher_on_the_same_augmented_images(images):
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(1728, 4)) for _ in range(2))
    method, step = made(student, teacher, images)
    augmented = method.perturb(step)
    term = method.terms(step, augmented)["distilled"]
    target = (teacher(augmented) / 2).softmax(1)
    expected = (target * (target.log() - (student(augmented) / 2).log_softmax(1))).sum(1)
    torch.testing.assert_close(term, 4 * expected)
    agreement = (student(augmented).argmax(1) == teacher(augmented).argmax(1)).float().mean()
    assert step.state.agreement == agreement
    with pytest.raises(ValueError, match=r"below 0\.7, above 0\.6"):
        methods.Hard(below=0.7)


def test_the_augmentation_climbs_to_where_student_and_teacher_differ(images):
    """They differ by how bright a picture is, so that brightness climbs, and colour has no reason to."""

    class Level(nn.Module):
        def __init__(self, gain):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(gain))

        def forward(self, images):
            level = self.gain * (images.mean((1, 2, 3)) - 0.5)
            return torch.stack([level, -level], 1)

    student, teacher, state = Level(1.0), Level(9.0), Augmentor()
    state.climbing.fill_(True)
    before = state.strengths.clone()
    many = images.repeat(20, 1, 1, 1)
    for seed in range(5):
        method, step = made(student, teacher, many, state, seed)
        method.perturb(step)
    place = NAMES.index("brightness")
    assert state.strengths[place] > before[place]
    assert student.gain.requires_grad
    assert student.gain.grad is None
    state.climbing.fill_(False)
    resting = state.strengths.clone()
    method.perturb(step)
    assert torch.equal(state.strengths, resting)
