import pytest
import torch

from attacks.lowfrequency import Filter, low_frequency

IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def root_mean_square(one, other):
    return (one - other).square().flatten(1).mean(1).sqrt()


@pytest.mark.parametrize("size", [3, 5, 7])
def test_a_fresh_filter_is_almost_the_identity(size):
    made = Filter(IMAGES, size)(IMAGES)
    assert (made - IMAGES).abs().max() < 1e-4


def test_a_filter_equals_a_naive_loop():
    one = Filter(IMAGES, 5)
    with torch.no_grad():
        one.logits.copy_(torch.randn(one.logits.shape, dtype=torch.float64))
    found = one(IMAGES)
    padded = torch.nn.functional.pad(IMAGES, (2, 2, 2, 2), mode="reflect")
    for b, y, x in ((0, 0, 0), (1, 5, 11), (1, 11, 3)):
        kernel = torch.zeros(5, 5, dtype=torch.float64)
        likeness = torch.zeros(5, 5, dtype=torch.float64)
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                kernel[dy + 2, dx + 2] = one.logits[b, abs(dy) * 3 + abs(dx), y, x]
                apart = (padded[b, :, y + 2 + dy, x + 2 + dx] - IMAGES[b, :, y, x]).abs().sum()
                likeness[dy + 2, dx + 2] = torch.exp(-(apart**2) / (2 * 0.1**2))
        weights = kernel.flatten().softmax(0).view(5, 5) * likeness
        weights = weights / weights.sum()
        expected = (padded[b, :, y : y + 5, x : x + 5] * weights).sum((1, 2))
        torch.testing.assert_close(found[b, :, y, x], expected)


def test_it_gains_within_the_bound_and_keeps_pictures_apart():
    weights = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def objective(images):
        return (images * weights).flatten(1).sum(1)

    found = low_frequency(objective, IMAGES, root_mean_square, bound=0.03, steps=40, penalty=1e4)
    assert root_mean_square(found, IMAGES).max() <= 0.03
    assert (objective(found) - objective(IMAGES)).min() > 1
    alone = low_frequency(objective, IMAGES[1:], root_mean_square, bound=0.03, steps=40, penalty=1e4)
    torch.testing.assert_close(alone, found[1:])


def test_an_impossible_bound_returns_the_original():
    def far(one, other):
        return torch.ones(len(one), dtype=one.dtype) + 0 * other.flatten(1).sum(1)

    found = low_frequency(lambda images: images.flatten(1).sum(1), IMAGES, far, bound=0.05, steps=3)
    assert torch.equal(found, IMAGES)
