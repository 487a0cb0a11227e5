import pytest
import torch
from torch import nn

from attacks import autocast, cross_entropy, expect, margin, mean_of, with_gradient
from attacks.objectives import value_and_gradient

IMAGES = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def curved(images):
    return (images**3).flatten(1).sum(1)


def wavy(images):
    return 1000 * images.sin().flatten(1).sum(1)


def test_margin_is_positive_exactly_when_the_classifier_is_wrong():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 5)).double()
    labels = torch.tensor([0, 1, 2])
    wrong = model(IMAGES).argmax(1) != labels
    assert torch.equal(margin(model, labels)(IMAGES) > 0, wrong)


def test_cross_entropy_is_one_value_per_image():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 5)).double()
    labels = torch.tensor([0, 1, 2])
    expected = [-model(IMAGES)[i].log_softmax(0)[labels[i]] for i in range(3)]
    torch.testing.assert_close(cross_entropy(model, labels)(IMAGES), torch.stack(expected))


def test_with_gradient_reports_the_value_and_carries_the_gradient():
    gradient, value = torch.randn_like(IMAGES), torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    losses, found = value_and_gradient(lambda x: with_gradient(x, gradient, value), IMAGES)
    torch.testing.assert_close(losses, value)
    torch.testing.assert_close(found, gradient)


def test_expect_is_the_mean_over_transforms_in_value_and_gradient():
    transforms = [lambda x: x, lambda x: x.flip(-1) * 0.5, lambda x: 1 - x]
    losses, found = value_and_gradient(expect(curved, transforms), IMAGES)
    naive, expected = value_and_gradient(lambda x: sum(curved(t(x)) for t in transforms) / 3, IMAGES)
    torch.testing.assert_close(losses, naive)
    torch.testing.assert_close(found, expected)


def test_expect_draws_a_random_transform_anew_each_time():
    factors = iter([1.0, 3.0])
    losses = expect(wavy, [lambda x: x * next(factors)], draws=2)(IMAGES)
    torch.testing.assert_close(losses, (wavy(IMAGES) + wavy(3 * IMAGES)) / 2)


def test_mean_of_gives_a_loud_and_a_quiet_objective_equal_say():
    _, found = value_and_gradient(mean_of([curved, wavy]), IMAGES)
    parts = [value_and_gradient(objective, IMAGES)[1] for objective in (curved, wavy)]
    expected = sum(g / g.abs().mean((1, 2, 3), keepdim=True) for g in parts) / 2
    torch.testing.assert_close(found, expected)


def test_mean_of_with_weights_reports_the_weighted_value():
    losses = mean_of([curved, wavy], weights=[0.9, 0.1])(IMAGES)
    torch.testing.assert_close(losses, 0.9 * curved(IMAGES) + 0.1 * wavy(IMAGES))


def test_combinators_refuse_empty_lists_and_wrong_weights():
    with pytest.raises(ValueError, match="at least one transform"):
        expect(curved, [])
    with pytest.raises(ValueError, match="one weight per objective"):
        mean_of([curved], weights=[1.0, 2.0])


def test_autocast_runs_the_network_in_bfloat16_and_returns_the_dtype_of_the_images():
    seen = []
    layer = nn.Conv2d(3, 4, 3)

    def objective(images):
        out = layer(images)
        seen.append(out.dtype)
        return out.float().flatten(1).sum(1)

    assert autocast(objective, torch.bfloat16)(IMAGES.float()).dtype == torch.float32
    assert seen == [torch.bfloat16]
