"""What is done to weights: averages, perturbation, schedules, the guard."""

import math

import pytest
import torch
from torch import nn

from distill.averaging import Ema, Swa, WeightAverage
from distill.awp import Awp, add, perturbation, perturbed_weights
from distill.batchnorm import batchnorm
from distill.networks import CifarResNet
from distill.overfitting import CollapseGuard
from distill.schedules import Cosine, Cyclic, Piecewise


def network(value=0.0):
    made = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for parameter in made.parameters():
        nn.init.constant_(parameter, value)
    made[1].running_mean.fill_(value)
    return made


def test_the_exponential_average_is_its_closed_form():
    average, decay = WeightAverage(network(3.0), Ema(decay=0.9, ramp=False)), 0.9
    for _ in range(7):
        average.update(network(1.0), epoch=0)
    expected = 1 + 2 * decay**7
    torch.testing.assert_close(average.network[0].weight, torch.full((2, 2), expected))
    torch.testing.assert_close(average.network[1].running_mean, torch.full((2,), expected))


def test_the_ramp_of_the_average_is_that_of_the_paper():
    rule = Ema(decay=0.995)
    assert [rule.kept(k) for k in (0, 8, 10**6)] == [0.1, 0.5, 0.995]


def test_equal_shares_are_the_mean_of_what_was_seen_from_its_epoch_on():
    average = WeightAverage(network(9.0), Swa(from_epoch=2))
    for epoch, value in enumerate([7.0, 5.0, 1.0, 2.0, 6.0]):
        average.update(network(value), epoch)
    torch.testing.assert_close(average.network[0].bias, torch.full((2,), 3.0))


def test_an_average_that_has_not_begun_follows_the_network():
    average = WeightAverage(network(9.0), Ema(from_epoch=1))
    average.update(network(4.0), epoch=0)
    torch.testing.assert_close(average.network[0].bias, torch.full((2,), 4.0))
    assert int(average.updates) == 0


def test_an_average_shares_no_tensor_with_the_network_and_never_trains():
    source = network(1.0)
    average = WeightAverage(source, Ema()).train()
    average.update(source, epoch=0)
    with torch.no_grad():
        source[1].running_mean.add_(5)
        source[0].weight.add_(5)
    torch.testing.assert_close(average.network[1].running_mean, torch.ones(2))
    torch.testing.assert_close(average.network[0].weight, torch.ones(2, 2))
    assert not any(module.training for module in average.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_integer_buffers_are_copied():
    source, average = network(), WeightAverage(network(), Ema())
    source[1].num_batches_tracked.fill_(41)
    average.update(source, epoch=0)
    assert int(average.network[1].num_batches_tracked) == 41


# ---- adversarial weight perturbation


def loss_of(net, images):
    return nn.functional.cross_entropy(net(images), torch.arange(len(images)) % 10)


@pytest.fixture
def perturbed(generator):
    """A small residual network, its weights by name, a loss, and the perturbation of one per cent."""
    torch.manual_seed(0)
    net = CifarResNet(8)
    images = torch.rand(8, 3, 16, 16, generator=generator)
    weights = perturbed_weights(net)
    with batchnorm(net, "batch"):
        found = perturbation(loss_of(net, images), weights, 0.01)
    return net, weights, images, found


def test_each_layer_moves_by_its_share_up_the_gradient_and_nothing_else_moves(perturbed):
    net, weights, images, found = perturbed
    kinds = {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {name.removesuffix(".weight") for name in found} == kinds
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with batchnorm(net, "batch"), torch.no_grad():
        low = loss_of(net, images)
        add(weights, found)
        assert loss_of(net, images) > low
    for name, value in net.state_dict().items():
        if name in found:
            share = (value - before[name]).norm() / before[name].norm()
            assert float(share) == pytest.approx(0.01, rel=1e-3)
        else:
            assert torch.equal(value, before[name]), name


def test_the_direction_is_that_of_the_released_code(perturbed):
    """One step of plain SGD up the loss on a copy of the network, then the difference, scaled."""
    import copy

    net, weights, images, found = perturbed
    proxy = copy.deepcopy(net).train()
    optimiser = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-loss_of(proxy, images)).backward()
    optimiser.step()
    for name, moved in proxy.named_parameters():
        if name in found:
            w = weights[name].detach()
            v = moved.detach() - w
            torch.testing.assert_close(found[name], 0.01 * v * w.norm() / v.norm(), atol=1e-4, rtol=2e-2)


def test_what_was_added_can_be_taken_back(perturbed):
    _, weights, _, found = perturbed
    before = {name: value.detach().clone() for name, value in weights.items()}
    add(weights, found)
    add(weights, found, sign=-1)
    for name, value in weights.items():
        torch.testing.assert_close(value.detach(), before[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
def test_a_gamma_that_is_no_share_is_refused(gamma):
    with pytest.raises(ValueError, match="share of each layer's norm"):
        Awp(gamma=gamma)


# ---- schedules


def test_a_piecewise_schedule_drops_at_its_epochs_and_stays_there():
    rate = Piecewise((2, 3))
    found = [rate(step, 10, 50) for step in (0, 19, 20, 29, 30, 49)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_cosine_falls_to_nothing_after_its_warm_up():
    rate = Cosine(warmup=0.1)
    assert rate(0, 10, 100) < 0.2
    assert rate(10, 10, 100) == pytest.approx(1)
    assert rate(55, 10, 100) == pytest.approx(0.5)
    assert rate(100, 10, 100) == pytest.approx(0, abs=1e-9)
    assert Cosine()(25, 10, 100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_a_cycle_rises_and_falls_in_straight_lines():
    rate = Cyclic()
    found = [rate(step, 10, 99) for step in range(99)]
    assert max(found) == pytest.approx(1)
    assert found[49] == pytest.approx(1)
    assert found == pytest.approx(found[::-1])
    assert min(found) > 0
    assert found[10] - found[9] == pytest.approx(0.02)


# ---- the guard


def test_the_guard_lets_noise_pass_and_stops_a_collapse():
    guard = CollapseGuard(drop=0.2)
    seen = [guard.collapsed(torch.tensor(value)) for value in (0.3, 0.45, 0.3, 0.05, 0.31)]
    assert seen == [False, False, False, True, False]


def test_a_guard_remembers_through_a_checkpoint():
    guard, resumed = CollapseGuard(), CollapseGuard()
    guard.collapsed(torch.tensor(0.5))
    resumed.load_state_dict(guard.state_dict())
    assert resumed.collapsed(torch.tensor(0.1))
    assert not CollapseGuard().collapsed(torch.tensor(0.1))


@pytest.mark.parametrize("options", [{"drop": 20.0}, {"steps": 0}])
def test_a_guard_that_watches_nothing_is_refused(options):
    with pytest.raises(ValueError, match="watches for a drop"):
        CollapseGuard(**options)
