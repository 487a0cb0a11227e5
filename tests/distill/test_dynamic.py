"""One network that holds many: what a smaller one is, what sorting leaves, and what recalibration knows."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from distill import methods
from distill.batchnorm import batchnorm
from distill.classifier import Classifier, Grown, Teacher, load, recalibrated
from distill.draws import Draws, generator_of
from distill.dynamic import DynamicResNet, Shape, Sizes
from distill.method import Method, Step
from distill.methods.rslad import dynamic_of
from experiments import subnetwork

SMALL = Shape(0.65, (0, 1, 2, 0), (0.2, 0.25, 0.35, 0.2))


@pytest.fixture
def network(generator):
    torch.manual_seed(0)
    made = DynamicResNet(64, 5)
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2, generator=generator)
            elif value.ndim == 1 and value.is_floating_point():
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return made.eval()


@pytest.fixture
def images(generator):
    return torch.rand(6, 3, 16, 16, generator=generator)


def test_a_shape_is_written_and_read_and_has_the_sizes_of_the_paper():
    assert str(SMALL) == "w0.65-d0_1_2_0-e0.2_0.25_0.35_0.2"
    assert Shape.parse(str(SMALL)) == SMALL
    largest = Sizes.of(256, Shape())
    assert largest == Sizes(64, (256, 512, 1024, 2048), (88, 176, 360, 720), (4, 4, 6, 4))
    for text in ("", "w1-d2-e0.35", "w2-d2_2_2_2-e0.3_0.3_0.3_0.3", "w1-d2_2_2_3-e0.3_0.3_0.3_0.3"):
        with pytest.raises(ValueError, match=r"no network has|a shape is written as|share of it"):
            Shape.parse(text)
    with pytest.raises(ValueError, match=r"share of it in \(0, 0\.35\]"):
        Shape(ratio=(0.5,) * 4)


@pytest.mark.parametrize("shape", [Shape(), SMALL, Shape(0.8, (1, 0, 0, 2), (0.35, 0.2, 0.2, 0.25))])
def test_an_extracted_network_says_what_the_active_one_says(network, images, shape):
    network.choose(shape)
    alone = network.extract()
    with torch.no_grad():
        torch.testing.assert_close(alone(images), network(images))
    largest = sum(each.numel() for each in network.parameters())
    assert sum(each.numel() for each in alone.parameters()) <= largest
    # nothing is shared
    alone.linear.weight.data.zero_()
    assert network.linear.weight.abs().sum() > 0


def test_a_smaller_network_is_the_first_channels_of_each_layer(network, images):
    """Channels beyond a network's width are made loud, and nothing of it is heard."""
    network.choose(SMALL)
    with torch.no_grad():
        before = network(images)
        sizes = network.active
        for stage in range(4):
            for block in network.blocks(stage):
                block.conv3.weight[sizes.out[stage] :] = 100
                block.conv2.weight[sizes.middle[stage] :] = 100
            for block in network.blocks(stage)[sizes.depth[stage] :]:
                block.conv1.weight.fill_(100)
        assert torch.equal(network(images), before)


def test_sorting_leaves_what_the_largest_network_says(network, images):
    with torch.no_grad():
        before = network(images)
        network.sort()
        torch.testing.assert_close(network(images), before, atol=1e-4, rtol=1e-4)
    later = [network.linear.weight[:, :, None, None]]
    later += [block.conv1.weight for block in network.blocks(3)[1:]]
    weight = sum(each.abs().sum((0, 2, 3)) for each in later)
    assert (weight[1:] <= weight[:-1] + 1e-6).all()
    middle = network.blocks(1)[0].conv3.weight.abs().sum((0, 2, 3))
    assert (middle[1:] <= middle[:-1] + 1e-6).all()


def test_statistics_come_from_recalibration_alone(network, images):
    before = {name: value.clone() for name, value in network.named_buffers()}
    network.train()
    network.choose(SMALL)
    network(images).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    network.eval()
    images = images.repeat(20, 1, 1, 1) + 0.1 * torch.randn(120, 3, 16, 16)
    network.recalibrate([images, images.flip(0)])
    # of one batch, the network then says what it says in training, up to the variance's divisor
    with torch.no_grad():
        known = network(images)
        with batchnorm(network, "batch"):
            expected = network(images)
    torch.testing.assert_close(known, expected, atol=0.05, rtol=0.05)
    beyond = network.blocks(3)[0].bn3.running_mean[network.active.out[3] :]
    assert torch.equal(beyond, before["stages.3.0.bn3.running_mean"][network.active.out[3] :])


def made_step(method, seed=0):
    torch.manual_seed(0)
    student = Classifier("dynamic-64", classes=5)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).requires_grad_(False)
    return Step(
        student.train(),
        torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(3)),
        torch.tensor([0, 1, 2, 3]),
        Draws(generator_of(seed)),
        teachers={"robust": teacher},
    )


def test_every_network_of_a_step_is_attacked_and_its_loss_added(monkeypatch):
    method = methods.ProArd(steps=1, networks=3, extras=(0, 2), ratios=(0.2, 0.35))
    step = made_step(method)
    network = dynamic_of(step.student)
    chosen, attacked = [], []
    choose, perturb = network.choose, Method.perturb

    def noted(shape=None):
        chosen.append(shape)
        choose(shape)

    def watched(self, given):
        attacked.append(network.active)
        return perturb(self, given)

    monkeypatch.setattr(network, "choose", noted)
    monkeypatch.setattr(Method, "perturb", watched)
    terms = method.terms(step, method.perturb(step))
    assert chosen[-1] is None
    assert len(chosen) == 4
    assert attacked == [Sizes.of(64, shape) for shape in chosen[:3]]
    assert network.active == Sizes.of(64, Shape())
    # the same by hand: RSLAD of each network, drawn and attacked in turn
    again = made_step(method)
    single, expected = replace(method, networks=1), []
    for _ in range(3):
        one = replace(again)
        adversarial = single.perturb(one)
        expected.append(methods.Rslad(steps=1).terms(one, adversarial))
    for name, value in terms.items():
        torch.testing.assert_close(value, sum(each[name] for each in expected))
    torch.stack(list(terms.values())).sum().backward()
    assert network.conv1.weight.grad is not None


def test_networks_are_drawn_evenly_and_alike_by_every_process():
    method = methods.ProArd(widths=(0.65, 1.0), extras=(0, 1), ratios=(0.2, 0.35))
    drawn = [method.draw(generator_of(seed)) for seed in range(200)]
    assert {shape.width for shape in drawn} == {0.65, 1.0}
    assert 60 < sum(shape.extra[2] for shape in drawn) < 140
    assert method.draw(generator_of(5)) == drawn[5]
    with pytest.raises(ValueError, match="one network or more"):
        methods.ProArd(networks=0)
    with pytest.raises(ValueError, match="no network has"):
        methods.ProArd(extras=(3,))
    with pytest.raises(ValueError, match="let the student be dynamic-256"):
        dynamic_of(nn.Linear(2, 2))


def test_a_grown_classifier_says_what_the_saved_one_says(tmp_path, images):
    torch.manual_seed(0)
    saved = Classifier("dynamic-64", classes=5)
    saved.save(tmp_path / "stage.safetensors")
    grown = Grown(str(tmp_path / "stage.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(grown.eval()(images), saved.eval()(images), atol=1e-4, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in grown.parameters())
    Classifier("resnet8").save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds resnet8, which is no network of many"):
        Grown(str(tmp_path / "other.safetensors"))


def test_the_command_takes_a_network_out_with_statistics_of_its_own(tmp_path, images, capsys):
    import numpy as np

    torch.manual_seed(0)
    saved = Classifier("dynamic-64", classes=5)
    saved.save(tmp_path / "all.safetensors")
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "toy.npz", images=pixels, labels=np.array([0, 1, 2, 3, 4, 0]))
    options = [str(tmp_path / "all.safetensors"), str(tmp_path / "one.safetensors")]
    options += ["--data", str(tmp_path / "toy.npz")]
    assert subnetwork.main([*options, "--shape", str(SMALL)]) == 0
    assert "million parameters" in capsys.readouterr().out
    one = load(tmp_path / "one.safetensors")
    assert one.config["architecture"] == f"dynamic-64:{SMALL}"
    assert isinstance(Teacher(options[1]), nn.Module)
    seen = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    saved.eval().network.choose(SMALL)
    recalibrated(saved, [seen])
    with torch.no_grad():
        torch.testing.assert_close(one(seen), saved(seen), atol=1e-4, rtol=1e-4)
    assert subnetwork.main([*options, "--shape", "tiny"]) == 1
    assert "a shape is written as" in capsys.readouterr().err
    assert subnetwork.main(["absent.safetensors", *options[1:], "--shape", str(SMALL)]) == 1
