"""Networks: their size, their shape, their file."""

import copy
import hashlib
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.classifier import CIFAR100, SHIPPED, Classifier, Teacher, load, shipped
from distill.networks import build

MILLIONS = {
    ("resnet18", 10): 11.17,
    ("preact18", 10): 11.17,
    ("mobilenet-v2", 10): 2.30,
    ("mobilenet-v2", 100): 2.41,
    ("wrn-28-10", 10): 36.5,
    ("wrn-34-10", 10): 46.2,
    ("wrn-34-20", 10): 184.5,
    ("wrn-70-16", 10): 266.8,
    ("wrn-34-1", 10): 0.47,
    ("wrn-34-2", 10): 1.9,
    ("resnet20", 10): 0.27,
    ("resnet56", 10): 0.85,
}
"""As published."""


@pytest.mark.parametrize(("name", "classes"), MILLIONS, ids=str)
def test_a_network_has_the_published_size(name, classes):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build(name, classes).parameters())
    published = MILLIONS[name, classes]
    digits = len(str(published).split(".")[1])
    assert round(count / 1e6, digits) == published, count


@pytest.mark.parametrize("name", ["resnet18", "preact18", "mobilenet-v2", "resnet8", "wrn-10-1"])
def test_a_network_sees_a_quarter_of_the_side_at_its_end_and_every_pixel(name):
    torch.manual_seed(0)
    net = Classifier(name, classes=7).eval()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = net(images)
    assert logits.shape == (2, 7)
    gradient = torch.autograd.grad(logits[0].square().sum(), images)[0]
    assert not gradient[1].any()
    assert (gradient[0] != 0).float().mean() > 0.5


def test_images_are_normalised_inside():
    torch.manual_seed(0)
    net = Classifier("resnet8").eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    )
    torch.testing.assert_close(net(images), net.network((images - mean) / std))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own use
def test_gradients_are_those_of_any_layout_and_can_be_viewed():
    torch.manual_seed(0)
    classifier = Classifier("resnet8").eval().double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    network = copy.deepcopy(classifier.network).to(memory_format=torch.contiguous_format)

    def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(of(images).logsumexp(1).sum(), images, create_graph=True)[0]

    found, expected = (
        gradient(classifier),
        gradient(lambda x: network((x - classifier.mean) / classifier.std)),
    )
    torch.testing.assert_close(found, expected)
    assert found.view(2, -1).shape == (2, 192)
    twice = [torch.autograd.grad(one.square().sum(), images)[0] for one in (found, expected)]
    torch.testing.assert_close(*twice)
    each = torch.func.vmap(torch.func.grad(lambda image: classifier(image[None]).logsumexp(1).sum()))
    torch.testing.assert_close(each(images.detach()), expected)
    along = torch.rand_like(images)
    _, slope = torch.func.jvp(lambda x: classifier(x).logsumexp(1).sum(), (images.detach(),), (along,))
    torch.testing.assert_close(slope, (expected * along).sum())


def test_a_file_says_which_network_it_holds(tmp_path):
    torch.manual_seed(0)
    net = Classifier("wrn-10-1", 20, *CIFAR100).eval()
    net.save(tmp_path / "net.safetensors")
    images = torch.rand(2, 3, 32, 32)
    found = load(tmp_path / "net.safetensors")
    assert torch.equal(found(images), net(images))
    assert found.config == net.config
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_a_teacher_stays_in_evaluation_mode(tmp_path):
    Classifier("resnet8").save(tmp_path / "net.safetensors")
    teacher = Teacher(str(tmp_path / "net.safetensors")).train()
    assert not any(module.training for module in teacher.modules())
    assert teacher(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_files_that_are_no_classifier_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights .*absent.*; cifar10-natural and cifar10-"):
        load(tmp_path / "absent.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="does not say which network it holds"):
        load(tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load(tmp_path / "text.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "6n \\+ 2 layers"),
        ("wrn-35-10", "6n \\+ 4 layers"),
        ("mobilnet-v2", "did you mean 'mobilenet-v2'"),
        ("vgg", "unknown network 'vgg'; available: resnet20"),
    ],
)
def test_a_network_that_there_is_not_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        build(name, 10)


def test_the_classifiers_that_ship_are_those_of_their_card():
    card = (SHIPPED / "README.md").read_text()
    assert shipped() == ["cifar10-natural", "cifar10-robust"]
    for name in shipped():
        digest = hashlib.sha256((SHIPPED / f"{name}.safetensors").read_bytes()).hexdigest()
        assert f"`{name}.safetensors`" in card
        assert digest in card


def test_a_classifier_that_ships_is_found_by_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in shipped():
        network = load(name)
        assert network.config["classes"] == 10
        assert torch.equal(network(images), Teacher(name)(images))
        assert next(network.parameters()).dtype == torch.float32
