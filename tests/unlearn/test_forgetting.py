"""Score forgetting distillation: its losses against their formulas, what trains, and what is refused."""

import pytest
import torch

from unlearn.forgetting import Forgetting

CLASSES = ("ant", "bee", "cat")
METHOD = Forgetting("bee", "cat", alpha=1.3)


@pytest.fixture
def teacher(small_prior):
    return small_prior(16, CLASSES).double()


def _moved(model, seed):
    torch.manual_seed(seed)
    twin = model.trainable_copy().eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return twin


def _seeded():
    return torch.Generator().manual_seed(0)


LIKE = torch.empty(1, 3, 16, 16, dtype=torch.float64)


def test_the_generators_loss_is_the_formula_and_the_forgotten_class_has_another_ones_aim(teacher):
    student, score = _moved(teacher, 1), _moved(teacher, 2)
    told = ["ant", "bee"]
    found = METHOD.generator_loss(teacher, student, score, told, LIKE, _seeded())
    generator = _seeded()
    noise = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    z = student.predict_clean(noise, torch.full((2,), 440), student.condition(told))
    t = torch.randint(38, 712, (2,), generator=generator)
    z_t = teacher.schedule.add_noise(z, torch.randn(z.shape, generator=generator, dtype=z.dtype), t)
    p = teacher.predict_clean(z_t, t, teacher.condition(["ant", "cat"]))
    s = score.predict_clean(z_t, t, teacher.condition(told))
    for row in range(2):
        pull = (p[row] - z[row]) - 1.3 * (p[row] - s[row])
        expected = ((p[row] - s[row]) * pull).sum() / (p[row] - z[row]).abs().mean()
        assert float(found[row].detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


def test_the_gradient_runs_through_the_picture_and_both_scores_but_not_the_scale(teacher):
    student, score = _moved(teacher, 1), _moved(teacher, 2)
    weight = next(parameter for parameter in student.denoiser.parameters() if parameter.ndim == 4)
    direction = torch.randn(weight.shape, generator=_seeded(), dtype=weight.dtype)

    def value(step, *, scale=None):
        with torch.no_grad():
            weight.add_(step * direction)
        generator = _seeded()
        noise = torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.float64)
        z = student.predict_clean(noise, torch.full((1,), 440), student.condition(["bee"]))
        t = torch.randint(38, 712, (1,), generator=generator)
        z_t = teacher.schedule.add_noise(z, torch.randn(z.shape, generator=generator, dtype=z.dtype), t)
        p = teacher.predict_clean(z_t, t, teacher.condition(["cat"]))
        s = score.predict_clean(z_t, t, teacher.condition(["bee"]))
        with torch.no_grad():
            weight.sub_(step * direction)
        size = (p - z).abs().mean().detach() if scale is None else scale
        return ((p - s) * ((p - z) - 1.3 * (p - s))).sum() / size, size

    _, scale = value(0.0)
    numeric = (value(1e-6, scale=scale)[0] - value(-1e-6, scale=scale)[0]) / 2e-6
    loss = METHOD.generator_loss(teacher, student, score, ["bee"], LIKE, _seeded()).sum()
    (slope,) = torch.autograd.grad(loss, weight)
    assert float((slope * direction).sum()) == pytest.approx(float(numeric.detach()), rel=1e-4)


def test_the_scores_loss_is_the_error_of_the_noise_in_what_is_drawn(teacher):
    student, score = _moved(teacher, 1), _moved(teacher, 2)
    found = METHOD.score_loss(teacher, student, score, ["cat"], LIKE, _seeded())
    generator = _seeded()
    z = METHOD.generated(student, ["cat"], LIKE, generator)
    t = torch.randint(38, 712, (1,), generator=generator)
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    said = score.predict_noise(teacher.schedule.add_noise(z, noise, t), t, teacher.condition(["cat"]))
    torch.testing.assert_close(found, (said - noise).square().mean((1, 2, 3)))
    found.sum().backward()
    assert all(parameter.grad is None for parameter in student.parameters())
    assert any(parameter.grad is not None for parameter in score.parameters())


def test_the_teacher_stays_and_the_generator_is_frozen_and_reproducible(teacher):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    told = []

    def made():
        settings = {"steps": 2, "batch_size": 4, "generator": _seeded()}
        return METHOD.distil(teacher, CLASSES, LIKE, callback=lambda *found: told.append(found), **settings)

    student = made()
    assert [step for step, _ in told] == [0, 1]
    assert all(torch.isfinite(loss).all() for _, loss in told)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in student.parameters())
    changed = student.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in changed.items())
    assert all(torch.equal(value, changed[name]) for name, value in made().state_dict().items())


def test_the_pull_towards_another_class_is_there_at_once(teacher):
    """With a fake score that is the teacher, told the class itself, only the forgotten class has a slope."""
    student = _moved(teacher, 1)
    losses = METHOD.generator_loss(teacher, student, teacher, ["ant", "cat", "bee"], LIKE, _seeded())
    assert losses[:2].abs().max() < 1e-9
    assert losses[2].abs() > 1e-6


def test_classes_that_there_are_not_are_named(teacher):
    with pytest.raises(ValueError, match="its own place"):
        Forgetting("bee", "bee")
    with pytest.raises(ValueError, match="not told dog"):
        Forgetting("dog", "bee").distil(teacher, CLASSES, LIKE, steps=1)
