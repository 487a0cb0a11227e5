"""Images recovered from a network: what is optimised, and what the network says of them."""

import numpy as np
import pytest
import torch
from torch import nn

from attacks import NonFiniteError
from distill.classifier import Classifier, load
from distill.condense import StatisticsGap, recover
from distill.images import labelled
from experiments import condense


@pytest.fixture(scope="module")
def trained():
    """A small network that tells flat dark pictures from flat bright ones."""
    torch.manual_seed(0)
    network = Classifier("resnet8", classes=2)
    adam = torch.optim.Adam(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        labels = torch.arange(32) % 2
        noise = 0.05 * torch.randn(32, 3, 16, 16, generator=generator)
        images = (0.25 + 0.5 * labels).view(-1, 1, 1, 1) + noise
        loss = nn.functional.cross_entropy(network(images), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return network.eval()


def test_the_gap_is_zero_for_what_the_layers_know_and_counts_the_first_layer_more():
    planes = torch.rand(8, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).double().eval()
    first, second = network
    first.running_mean, first.running_var = planes.mean((0, 2, 3)), planes.var((0, 2, 3), correction=0)
    with torch.no_grad():
        inside = first(planes)
    second.running_mean, second.running_var = inside.mean((0, 2, 3)), inside.var((0, 2, 3), correction=0)
    gap = StatisticsGap(network, first=10)
    with torch.no_grad(), gap.watch() as total:
        network(planes)
        assert total() < 1e-12
    first.running_mean = first.running_mean + torch.tensor([3.0, 0, 4.0]).double()
    with torch.no_grad(), gap.watch() as total:
        first(planes)
        assert float(total()) == pytest.approx(50)
    assert not first._forward_pre_hooks
    with pytest.raises(ValueError, match="no batch normalisation"):
        StatisticsGap(nn.Conv2d(3, 3, 1))


def test_recovered_images_are_of_their_class_and_nearer_to_the_statistics(trained):
    labels, seen = torch.tensor([0, 1, 0, 1]), []
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    images = recover(
        trained,
        labels,
        side=16,
        steps=60,
        generator=torch.Generator().manual_seed(0),
        callback=lambda step, loss: seen.append(loss),
    )
    assert images.shape == (4, 3, 16, 16)
    assert 0 <= images.min() <= images.max() <= 1
    with torch.no_grad():
        assert torch.equal(trained(images).argmax(1), labels)
    assert seen[-1] < seen[0] / 3
    assert images[labels == 1].mean() > images[labels == 0].mean()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.parameters())
    again = recover(trained, labels, side=16, steps=60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_what_cannot_be_recovered_is_refused_and_the_network_stays(trained):
    with pytest.raises(ValueError, match="labels lie in 0 to 1"):
        recover(trained, torch.tensor([2]), side=16)
    broken = Classifier("resnet8", classes=2)
    with torch.no_grad():
        broken.network.linear.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the loss of step 0"):
        recover(broken, torch.tensor([0]), side=16)
    assert broken.training
    assert all(parameter.requires_grad for parameter in broken.parameters())


def test_the_command_writes_a_set_that_is_trained_on(trained, tmp_path, capsys):
    trained.save(tmp_path / "squeezed.safetensors")
    out = tmp_path / "distilled.npz"
    options = [str(tmp_path / "squeezed.safetensors"), str(out), "--per-class", "3", "--steps", "60"]
    assert condense.main([*options, "--side", "16", "--batch", "4"]) == 0
    assert "6 pictures, of which the network takes 100 % for their class" in capsys.readouterr().out
    found = labelled(out, train=True)
    assert (len(found), found.classes, tuple(found.pixels.shape[1:])) == (6, 2, (3, 16, 16))
    pixels = torch.from_numpy(np.load(out)["images"]).permute(0, 3, 1, 2) / 255
    assert torch.equal(load(options[0])(pixels).argmax(1), found.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["absent.safetensors", "out.npz"], "there are no weights absent.safetensors"),
        (["squeezed.safetensors", "out.pt"], "the set is written as npz; got out.pt"),
        (["squeezed.safetensors", "out.npz", "--per-class", "0"], "one picture or more; got 0"),
    ],
)
def test_mistakes_take_one_line(trained, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    trained.save("squeezed.safetensors")
    assert condense.main(options) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["squeezed.safetensors"]
