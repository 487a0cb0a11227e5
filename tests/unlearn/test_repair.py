"""Repairs: what each does to a network by its definition, and that a planted backdoor goes."""

import copy

import pytest
import torch
from torch import nn

from attacks import NonFiniteError
from unlearn import pruning
from unlearn.amplification import strip
from unlearn.channels import ChannelMasks, layers_of, lipschitz, prune
from unlearn.inversion import scan
from unlearn.measures import measure
from unlearn.repairs import REPAIRS, repair
from unlearn.triggers import Patch, poison


def small(classes=3):
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, classes)),
    )


def pictures(count, seed):
    """Three classes: which colour is the brightest."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = 0.25 + 0.2 * torch.rand(count, 3, 12, 12, generator=generator)
    images[torch.arange(count), labels] += 0.12
    return images, labels


def poisoned():
    images, labels, _ = poison(
        *pictures(600, 1), Patch(), target=0, ratio=0.1, generator=torch.Generator().manual_seed(0)
    )
    return images, labels


def taught(images, labels):
    torch.manual_seed(0)
    network = small()
    adam = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(15):
        for some in torch.randperm(600, generator=torch.Generator().manual_seed(1)).split(60):
            loss = nn.functional.cross_entropy(network(images[some]), labels[some])
            adam.zero_grad()
            loss.backward()
            adam.step()
    return network.eval()


@pytest.fixture(scope="module")
def backdoored():
    """A small network that was trained on a poisoned set: class 0 where there is a white square."""
    return taught(*poisoned())


@pytest.fixture(scope="module")
def planted():
    """A clean network with a backdoor put in by hand: one channel of each layer sees bright squares alone, a
    few clean pictures by a trace, and votes for class 0."""
    network = taught(*pictures(600, 1))
    first, norm, second, after, last = (network[place] for place in (0, 1, 4, 5, 9))
    with torch.no_grad():
        first.weight[11], first.bias[11] = 1 / 27, 0
        norm.running_mean[11], norm.running_var[11] = 0.39, 1
        norm.weight[11], norm.bias[11] = 40, -1
        second.weight[:, 11], second.weight[15], second.bias[15] = 0, 0, 0
        second.weight[15, 11, 1, 1] = 1
        after.running_mean[15], after.running_var[15] = 0, 1
        after.weight[15], after.bias[15] = 1, 0
        last.weight[:, 60:] = torch.tensor([[1.0], [-1.0], [-1.0]])
    return network


@pytest.fixture(scope="module")
def judged():
    return pictures(600, 2)


def test_the_backdoor_is_there(backdoored, judged):
    found = measure(backdoored, *judged, Patch(), target=0)
    assert found.clean.share > 0.95
    assert found.attack.share > 0.95


SETTINGS = {
    "statistics": {},
    "fine-tuning": {"epochs": 15, "learning_rate": 0.03},
    "fine-pruning": {"epochs": 15, "learning_rate": 0.03, "step": 0.06},
    "nad": {"epochs": 15, "learning_rate": 0.03, "weights": (500.0, 500.0)},
    "anp": {"steps": 150, "eps": 1.5, "allowed": 0.1},
    "clp": {"deviations": 1.0},
    "i-bau": {"radius": 0.8, "rounds": 2, "ascent": 5, "updates": 10},
    "neural-cleanse": {"steps": 100, "learning_rate": 0.03},
    "abl": {"epochs": 1, "learning_rate": 1e-3},
}


@pytest.mark.parametrize("method", REPAIRS)
def test_a_repair_leaves_the_given_network_and_keeps_the_accuracy(backdoored, judged, method):
    before = {name: value.clone() for name, value in backdoored.state_dict().items()}
    images, labels = pictures(200, 3)

    def repaired():
        generator = torch.Generator().manual_seed(0)
        return repair(backdoored, images, labels, method=method, generator=generator, **SETTINGS[method])

    made = repaired()
    assert all(torch.equal(value, before[name]) for name, value in backdoored.state_dict().items())
    assert not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    changed = made.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in changed.items())
    found = measure(made, *judged, Patch(), target=0)
    told = f"{method}: clean {found.clean}, attack {found.attack}, robust {found.robust}"
    assert found.clean.share > 0.85, told
    assert all(torch.equal(value, changed[name]) for name, value in repaired().state_dict().items())


def after(network, judged, method, **settings):
    learned = poisoned() if method == "abl" else pictures(200, 3)
    generator = torch.Generator().manual_seed(0)
    made = repair(network, *learned, method=method, generator=generator, **settings)
    return measure(made, *judged, Patch(), target=0)


LEARNED = {
    "fine-pruning": SETTINGS["fine-pruning"],
    "nad": {"epochs": 15, "learning_rate": 0.03, "weights": (2000.0, 2000.0)},
    "neural-cleanse": SETTINGS["neural-cleanse"],
    "abl": {"share": 0.05, "epochs": 20},
}


@pytest.mark.parametrize("method", LEARNED)
def test_a_backdoor_that_fine_tuning_leaves_goes(backdoored, judged, method):
    assert after(backdoored, judged, "fine-tuning", **SETTINGS["fine-tuning"]).attack.share > 0.95
    found = after(backdoored, judged, method, **LEARNED[method])
    assert found.attack.share < 0.1
    assert found.clean.share > 0.95


IN_A_CHANNEL = {
    "anp": {"steps": 150, "allowed": 0.05},
    "clp": {"deviations": 2.0},
    "i-bau": {"radius": 0.8, "rounds": 3, "ascent": 5, "updates": 10, "learning_rate": 1e-2},
}


@pytest.mark.parametrize("method", IN_A_CHANNEL)
def test_a_backdoor_in_a_channel_goes(planted, judged, method):
    before = measure(planted, *judged, Patch(), target=0)
    assert min(before.clean.share, before.attack.share) > 0.95
    found = after(planted, judged, method, **IN_A_CHANNEL[method])
    assert found.attack.share < 0.1
    assert found.clean.share > 0.95


def test_factors_name_the_channels_that_hold_the_backdoor(planted, monkeypatch):
    """By the paper's own bound of perturbations."""
    named = []
    monkeypatch.setattr(pruning, "_prune_while", lambda network, singles, *rest: named.extend(singles))
    repair(planted, *pictures(200, 3), method="anp", steps=150)
    assert [(layer.name, int(channel)) for layer, channel in named[:2]] == [("1", 11), ("5", 15)]


def test_rounds_of_unlearning_that_cost_a_class_are_taken_back(backdoored, judged):
    """A perturbation of length 1.5 can turn one colour into another here, so no network withstands it."""
    images, labels = pictures(200, 3)

    def repaired(**settings):
        return repair(
            backdoored, images, labels, method="i-bau", radius=1.5, rounds=2, updates=10, ascent=5, **settings
        )

    assert measure(repaired(allowed=1.0), *judged, Patch(), target=0).clean.share < 0.8
    kept = repaired().state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in backdoored.state_dict().items())


def test_what_cannot_be_repaired_is_refused(backdoored):
    images, labels = pictures(20, 4)
    with pytest.raises(ValueError, match="unknown repair 'prayer'; available: statistics, fine-tuning, "):
        repair(backdoored, images, labels, method="prayer")
    with pytest.raises(ValueError, match="ten clean pictures with labels; got 5, 5"):
        repair(backdoored, images[:5], labels[:5])
    with pytest.raises(ValueError, match="clp cannot be run with"):
        repair(backdoored, images, labels, method="clp", depth=3)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))
    with pytest.raises(ValueError, match="no convolution with batch normalisation"):
        repair(plain, images, labels, method="clp")
    with pytest.raises(ValueError, match="no batch normalisation whose statistics"):
        repair(plain, images, labels, method="statistics")
    with pytest.raises(NonFiniteError, match="not finite: lower its rates"):
        repair(backdoored, images * float("nan"), labels, method="fine-tuning")
    with pytest.raises(ValueError, match="labels go from 0 to 7, and the network has classes 0 to 2"):
        repair(backdoored, images, labels.clone().index_fill_(0, torch.tensor([0]), 7))
    damaged = copy.deepcopy(backdoored)
    damaged[9].bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match="clp left weights that are not finite, or found them"):
        repair(damaged, images, labels, method="clp")


def test_labels_of_another_kind_and_modes_of_a_network_are_no_matter(backdoored):
    images, labels = pictures(20, 4)
    repair(backdoored, images, labels.int(), method="fine-tuning", epochs=1)
    network = copy.deepcopy(backdoored).train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scan(network, images, steps=2)
    strip(network, images, images, draws=2)
    measure(network, images, labels, Patch(), target=0)
    assert [module.training for module in network[:3]] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# ---- channels


def test_layers_are_convolutions_with_their_normalisation(backdoored):
    found = layers_of(backdoored)
    assert [(layer.name, layer.conv.out_channels) for layer in found] == [("1", 12), ("5", 16)]
    with pytest.raises(ValueError, match="no convolution with batch normalisation"):
        layers_of(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("accuracies", "pruned"),
    [
        ([0.9, 0.87, 0.89, 0.885, 0.87, 0.85, 0.99], 3),  # what one channel costs, another brings back
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 6),
        ([0.9, 0.8], 0),
    ],
)
def test_most_channels_go_that_cost_no_more_than_is_allowed(backdoored, monkeypatch, accuracies, pruned):
    network, told = copy.deepcopy(backdoored), iter(accuracies)
    monkeypatch.setattr(pruning, "accuracy", lambda *given: next(told))
    layer = layers_of(network)[0]
    weight, bias = layer.norm.weight.clone(), layer.norm.bias.clone()
    portions = [(layer, torch.tensor([2 * channel])) for channel in range(6)]
    pruning._prune_while(network, portions, *pictures(4, 0), 0.02)
    gone = torch.zeros(12, dtype=torch.bool)
    gone[0 : 2 * pruned : 2] = True
    assert torch.equal(layer.norm.weight, torch.where(gone, 0, weight))
    assert torch.equal(layer.norm.bias, torch.where(gone, 0, bias))


def test_statistics_taken_anew_are_those_of_the_pictures_and_no_weight_changes(backdoored):
    images, labels = pictures(60, 3)
    made = repair(backdoored, images, labels, method="statistics", batch_size=20)
    out = backdoored[0](images)
    torch.testing.assert_close(made[1].running_mean, out.mean((0, 2, 3)).detach())
    parts = [some.var((0, 2, 3)) for some in out.detach().split(20)]
    assert torch.allclose(made[1].running_var, torch.stack(parts).mean(0), rtol=0.02)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), backdoored.parameters(), strict=True))
    assert made[1].momentum == backdoored[1].momentum


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ELU(), nn.ReLU()], ids=["none", "elu", "relu"])
def test_pruned_channels_stay_silent_when_the_network_learns(activation):
    """Where no ReLU follows, the gradient of what comes out of a normalisation does not vanish at 0."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        activation,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    made = repair(network.eval(), *pictures(60, 3), epochs=3, step=0.25, allowed=1.0)
    (layer,) = layers_of(made)
    assert not layer.norm.weight.any()
    assert not layer.norm.bias.any()
    assert not torch.equal(made[5].bias, network[5].bias)


def test_normalisations_that_cannot_be_pruned_are_left_out():
    norms = [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)]
    pairs = [part for norm in norms for part in (nn.Conv2d(4, 4, 1), norm)]
    (layer,) = layers_of(nn.Sequential(*pairs))
    assert layer.norm is norms[0]


def test_a_pruned_channel_says_nothing(backdoored):
    network = copy.deepcopy(backdoored)
    layer = layers_of(network)[0]
    chosen = torch.zeros(12, dtype=torch.bool)
    chosen[3] = True
    prune(layer, chosen)
    out = network[:2](torch.rand(2, 3, 12, 12))
    assert out[:, 3].abs().max() == 0
    assert out[:, 4].abs().max() > 0


def test_the_bound_is_the_gain_of_a_channel_of_one_pixel_kernels(generator):
    """For 1 x 1 kernels the matrix is a column, whose spectral norm is its length."""
    network = nn.Sequential(nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
        network[1].running_var.copy_(torch.tensor([1.0, 4.0, 1.0, 0.25]))
    (layer,) = layers_of(network)
    lengths = network[0].weight.flatten(1).norm(dim=1)
    gains = torch.tensor([1.0, 1.0, 0.5, 6.0])
    torch.testing.assert_close(lipschitz(layer), (lengths * gains).detach(), atol=1e-4, rtol=1e-4)


def test_masks_of_one_change_nothing_and_others_scale_channels(backdoored):
    images = torch.rand(2, 3, 12, 12)
    masks = ChannelMasks(backdoored)
    with torch.no_grad():
        before = backdoored(images)
        with masks.applied():
            torch.testing.assert_close(backdoored(images), before)
            masks.masks[0][2], masks.shifts[0][2] = 0, -1
            muted = backdoored[:2](images)
        assert muted[:, 2].abs().max() == 0
        assert torch.equal(backdoored(images), before), "hooks are gone"
