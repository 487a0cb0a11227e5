import pytest
import torch
from torch import nn

from attacks import L2, Linf, NonFiniteError, cross_entropy, margin, pgd

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
WEIGHT = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def linear(images):
    return (images * WEIGHT.to(images)).flatten(1).sum(1)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, 10)).requires_grad_(False)


def test_linear_objective_ends_at_the_corner_of_the_linf_ball():
    eps = 8 / 255
    found = pgd(linear, IMAGES, Linf(eps), steps=10, step_size=eps / 4)
    torch.testing.assert_close(found, (IMAGES + eps * WEIGHT.sign()).clamp(0, 1))


def test_linear_objective_ends_along_the_gradient_in_l2():
    images = torch.full_like(IMAGES, 0.5)  # far from 0 and 1, so that the box does not bend the path
    found = pgd(linear, images, L2(0.3), steps=10, step_size=0.1)
    torch.testing.assert_close(found, (images + 0.3 * WEIGHT / WEIGHT.norm()))


def test_an_attack_can_be_gone_on_with_and_a_start_outside_is_brought_into_the_ball():
    ball, options = Linf(0.05), {"step_size": 0.02}
    for steps in (1, 2, 4):
        first = pgd(linear, IMAGES, ball, steps=steps, **options)
        whole = pgd(linear, IMAGES, ball, steps=steps + 1, **options)
        # elsewhere rounding may clip a value one unit earlier
        torch.testing.assert_close(pgd(linear, IMAGES, ball, start=first, steps=1, **options), whole)
    far = pgd(linear, IMAGES, ball, start=torch.zeros_like(IMAGES), steps=1, step_size=0.0)
    torch.testing.assert_close(far, (IMAGES - 0.05).clamp(0, 1))


def test_a_negated_objective_descends():
    found = pgd(lambda images: -linear(images), IMAGES, Linf(0.1), steps=5, step_size=0.05)
    torch.testing.assert_close(found, (IMAGES - 0.1 * WEIGHT.sign()).clamp(0, 1))


def test_equals_torchattacks_pgd_on_cross_entropy(classifier):
    import torchattacks

    labels = torch.tensor([1, 4, 2, 9])
    reference = torchattacks.PGD(classifier, eps=8 / 255, alpha=2 / 255, steps=7, random_start=False)
    ours = pgd(cross_entropy(classifier, labels), IMAGES, Linf(8 / 255), steps=7, step_size=2 / 255)
    torch.testing.assert_close(ours, reference(IMAGES, labels), atol=1e-6, rtol=0)


def test_momentum_equals_torchattacks_mifgsm(classifier):
    import torchattacks

    labels = torch.tensor([1, 4, 2, 9])
    reference = torchattacks.MIFGSM(classifier, eps=8 / 255, alpha=2 / 255, steps=7, decay=1.0)
    ours = pgd(
        cross_entropy(classifier, labels), IMAGES, Linf(8 / 255), steps=7, step_size=2 / 255, momentum=1.0
    )
    torch.testing.assert_close(ours, reference(IMAGES, labels), atol=1e-6, rtol=0)


@pytest.mark.parametrize("ball", [Linf(8 / 255), L2(0.4)], ids=repr)
def test_a_batch_equals_its_images_one_by_one(classifier, ball):
    model, images = classifier.double(), IMAGES.double()
    labels = torch.tensor([1, 4, 2, 9])

    def run(part):
        objective = margin(model, labels[part])
        generator = torch.Generator().manual_seed(3)
        return pgd(
            objective,
            images[part],
            ball,
            steps=6,
            step_size=ball.eps / 3,
            random_start=True,
            generator=generator,
        )

    alone = torch.cat([run(slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(run(slice(None)), alone, atol=1e-12, rtol=0)
    model.float()


def test_masked_pixels_stay_bit_for_bit():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:] = 1
    found = pgd(linear, IMAGES, Linf(0.1), steps=4, step_size=0.05, mask=mask, random_start=True)
    kept = mask.expand_as(IMAGES) == 0
    assert torch.equal(found[kept], IMAGES[kept])
    assert (found[~kept] != IMAGES[~kept]).any()


def test_step_size_may_follow_a_schedule():
    middle = torch.full_like(IMAGES, 0.5)
    found = pgd(linear, middle, Linf(1.0), steps=3, step_size=lambda step: 0.1 / 2**step)
    torch.testing.assert_close(found, middle + 0.175 * WEIGHT.sign())


def test_draws_average_the_gradient_of_a_random_objective():
    flips = iter([1.0, 1.0, -1.0] * 2)
    found = pgd(
        lambda images: next(flips) * linear(images), IMAGES, Linf(0.1), steps=2, step_size=0.1, draws=3
    )
    torch.testing.assert_close(found, (IMAGES + 0.1 * WEIGHT.sign()).clamp(0, 1))


def test_best_keeps_the_highest_iterate_when_later_steps_overshoot():
    middle = torch.full_like(IMAGES, 0.5)
    goal = middle + 0.03

    def closeness(images):
        return -(images - goal).abs().flatten(1).sum(1)

    last = pgd(closeness, middle, Linf(0.2), steps=2, step_size=0.05)
    best = pgd(closeness, middle, Linf(0.2), steps=2, step_size=0.05, best=True)
    torch.testing.assert_close(last, middle)  # steps over the goal and back
    torch.testing.assert_close(best, middle + 0.05)


def test_a_true_callback_ends_the_loop_and_keeps_what_was_found():
    seen = []

    def stop(step, images, losses):
        seen.append((step, losses.shape))
        return step == 1

    found = pgd(linear, torch.full_like(IMAGES, 0.5), Linf(0.5), steps=50, step_size=0.01, callback=stop)
    assert seen == [(0, (4,)), (1, (4,))]
    torch.testing.assert_close(found, 0.5 + 0.02 * WEIGHT.sign().expand_as(found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_non_finite_loss_stops_the_loop_and_names_step_and_dtype(dtype):
    calls = iter([1.0, 1.0, float("nan")])
    message = f"loss is not finite at step 2 .*{str(dtype).removeprefix('torch.')}"
    with pytest.raises(NonFiniteError, match=message):
        pgd(
            lambda images: (linear(images) * next(calls)).to(dtype),
            IMAGES,
            Linf(0.1),
            steps=5,
            step_size=0.01,
        )


def test_a_non_finite_gradient_stops_the_loop():
    with pytest.raises(NonFiniteError, match="gradient is not finite at step 0"):
        pgd(lambda images: (images * 0).sqrt().flatten(1).sum(1), IMAGES, Linf(0.1), steps=1, step_size=0.01)


def test_an_objective_must_return_one_loss_per_image():
    with pytest.raises(ValueError, match=r"one loss per image, shape \(4,\); got \(\)"):
        pgd(lambda images: linear(images).mean(), IMAGES, Linf(0.1), steps=1, step_size=0.01)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 1, "draws": 0}])
def test_counts_must_be_positive(bad):
    with pytest.raises(ValueError, match="at least 1"):
        pgd(linear, IMAGES, Linf(0.1), step_size=0.01, **bad)


def test_bfloat16_images_are_worked_on_in_float32():
    found = pgd(linear, IMAGES.bfloat16(), Linf(8 / 255), steps=1, step_size=1 / 255)
    assert found.dtype == torch.float32


def test_the_input_is_not_modified():
    images = IMAGES.clone()
    pgd(linear, images, Linf(0.1), steps=2, step_size=0.05)
    assert torch.equal(images, IMAGES)
