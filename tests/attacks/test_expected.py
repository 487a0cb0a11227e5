import pytest
import torch
from torch import nn

from attacks.adaptive import Exact, Expected, with_seeds
from attacks.losses import cross_entropy, dlr, margin, targeted_dlr
from attacks.objectives import value_and_gradient
from purify import Blur, PurifiedClassifier

IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1])


class Noisy(nn.Module):
    """A random classifier whose noise the seeds settle."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(48, 4).double()
        self.batches = []

    def forward(self, images, seeds=None):
        self.batches.append(len(images))
        noise = [
            torch.randn(48, generator=torch.Generator().manual_seed(int(seed) % 2**40)) for seed in seeds
        ]
        return self.layer(torch.tanh(images.flatten(1) + torch.stack(noise)))


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 100])
def test_value_and_gradient_are_the_mean_over_draws(micro_batch):
    model = Noisy()
    objective = Expected(model, LABELS, cross_entropy, draws=5, micro_batch=micro_batch, fixed=True)
    value, gradient = value_and_gradient(objective, IMAGES)
    assert max(model.batches) <= micro_batch

    def naive(images):
        each = [cross_entropy(model(images, seed.expand(3)), LABELS) for seed in objective.seeds]
        return torch.stack(each).mean(0)

    expected_value, expected_gradient = value_and_gradient(naive, IMAGES)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradient, expected_gradient)


def test_draws_change_between_calls_unless_they_are_fixed():
    free = Expected(Noisy(), LABELS, draws=2)
    assert not torch.equal(free(IMAGES), free(IMAGES))
    fixed = Expected(Noisy(), LABELS, draws=2, fixed=True)
    first = fixed(IMAGES)
    assert torch.equal(first, fixed(IMAGES))
    fixed.redraw()
    assert not torch.equal(first, fixed(IMAGES))


def test_it_works_without_gradients():
    objective = Expected(Noisy(), LABELS, draws=3, fixed=True)
    with torch.no_grad():
        value = objective(IMAGES)
    torch.testing.assert_close(value, value_and_gradient(objective, IMAGES)[0])


def test_a_defence_without_gradient_is_refused_in_one_line():
    model = Noisy()
    objective = Expected(torch.no_grad()(model.forward), LABELS, draws=2)
    with pytest.raises(ValueError, match="runs under torch") as caught:
        value_and_gradient(objective, IMAGES)
    assert "\n" not in str(caught.value)


def test_seeds_reach_a_purifier_however_it_is_put_together():
    seen = []

    class Recorder(Blur):
        def forward(self, images, seeds=None):
            seen.append(seeds)
            return super().forward(images, seeds)

    classifier, seeds = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), torch.tensor([4, 5, 6])
    images = torch.rand(3, 3, 8, 8)
    for model in (
        PurifiedClassifier(Recorder(), classifier),
        nn.Sequential(Recorder(), classifier),
        nn.Sequential(Recorder(), *classifier),
    ):
        assert with_seeds(model)(images, seeds).shape == (3, 2)
        assert torch.equal(seen.pop(), seeds)
    wrapped = with_seeds(nn.Sequential(Exact(Blur()), classifier))(images, seeds)
    torch.testing.assert_close(wrapped, classifier(Blur()(images)))
    torch.testing.assert_close(with_seeds(classifier)(images, seeds), classifier(images))
    torch.testing.assert_close(with_seeds(lambda x: classifier(x))(images, seeds), classifier(images))


def test_losses_of_logits_follow_their_formulas():
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0], [0.0, 2.0, 1.0, 4.0]])
    labels, targets = torch.tensor([0, 1]), torch.tensor([2, 3])
    torch.testing.assert_close(margin(logits, labels), torch.tensor([-2.0, 2.0]))
    torch.testing.assert_close(dlr(logits, labels), torch.tensor([-2.0 / 2.5, 2.0 / 3.0]))
    expected = torch.tensor([-2.5 / (3 - (0.5 - 1) / 2), 2.0 / (4 - (1 + 0) / 2)])
    torch.testing.assert_close(targeted_dlr(logits, labels, targets), expected)
    torch.testing.assert_close(dlr(100 * logits, labels), dlr(logits, labels))
    with pytest.raises(ValueError, match="at least 3 classes; got 2"):
        dlr(logits[:, :2], labels)
    with pytest.raises(ValueError, match="at least 4 classes; got 3"):
        targeted_dlr(logits[:, :3], labels, labels)
