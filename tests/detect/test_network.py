"""Detectors that are networks: their networks, what their training descends, and what they remember."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from detect import distildire
from detect.cache import StaleCacheError
from detect.cnndetection import CnnDetector
from detect.detector import DetectorError, create
from detect.dire import dire, first_step_noise, noise_maps
from detect.distildire import DireDetector, DistilDireDetector, distance
from detect.network import mirrored
from detect.resnet import ResNet
from diffusion.load import load
from imaging.transforms import jpeg

NARROW = {"blocks": (1, 1), "width": 8, "bottleneck": False, "small": True}


@pytest.fixture
def prior(small_prior):
    return small_prior(16, ["cat"])


@pytest.fixture
def images(generator):
    return (torch.rand(6, 3, 16, 16, generator=generator) * 255).round() / 255


# ---- the network


def test_the_network_is_torchvisions_resnet_50_with_one_logit(generator):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    theirs = resnet50(num_classes=1).eval()
    ours = ResNet().eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images)[:, 0])


def test_further_planes_start_at_zero_and_the_others_where_the_weights_were():
    torch.manual_seed(0)
    three, six = ResNet(3, **NARROW), ResNet(6, **NARROW)
    six.start_from(three.state_dict())
    planes = torch.rand(2, 6, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(six.eval().maps(planes), three.eval().maps(planes[:, :3]))
    with pytest.raises(ValueError, match=r"another ResNet: conv1\.weight does not fit"):
        ResNet(3).start_from(three.state_dict())
    without = {name: value for name, value in three.state_dict().items() if "layer2" not in name}
    with pytest.raises(ValueError, match=r"another ResNet: layer2"):
        six.start_from(without)


# ---- what is seen


def test_what_is_seen_are_images_and_noise_at_their_size(prior, images):
    noise = noise_maps(prior, images)
    torch.testing.assert_close(noise, first_step_noise(prior, images))
    expected = {"image": 2 * images - 1, "noise": noise, "both": torch.cat([2 * images - 1, noise], 1)}
    for sees, planes in expected.items():
        made = DistilDireDetector(model=prior, network=NARROW, sees=sees)
        torch.testing.assert_close(made.features(images), planes)
        assert made.network.conv1.in_channels == planes.shape[1]
    torch.testing.assert_close(
        DireDetector(model=prior, network=NARROW).features(images), 2 * dire(prior, images) - 1
    )


def test_noise_of_patches_lies_where_the_patches_were_cut(images):
    model = load("cifar10")
    pixels = torch.nn.functional.interpolate(images, size=32)
    noise, maps = first_step_noise(model, pixels), noise_maps(model, pixels)
    assert noise.shape == (6, 12, 16, 16)
    torch.testing.assert_close(torch.nn.functional.pixel_unshuffle(maps, 2), noise)


def test_noise_of_latents_is_repeated_for_their_pixels(generator):
    model = load("builtin")
    images = torch.rand(1, 3, 64, 64, generator=generator)
    made = DistilDireDetector(model=model, network=NARROW)
    assert made.features(images).shape == (1, 3 + model.latent_channels, 64, 64)
    torch.testing.assert_close(made.features(images)[:, 3:, ::8, ::8], first_step_noise(model, images))


def test_pictures_of_any_size_are_answered(prior, generator):
    made = DistilDireDetector(model=prior, network=NARROW)
    odd = torch.rand(2, 3, 19, 30, generator=generator)
    assert made.features(odd).shape == (2, 6, 19, 30)
    assert made.heatmap(odd).shape == (2, 19, 30)
    assert DireDetector(model=prior, network=NARROW).heatmap(odd).shape == (2, 19, 30)


def test_the_diffusion_model_is_neither_trained_nor_saved(prior, images):
    made = DistilDireDetector(model=prior, network=NARROW, epochs=1)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    made.learn(images, torch.tensor([0, 1] * 3))
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())
    assert not [name for name in made.weights() if not name.startswith("network.")]


def test_another_models_weights_and_half_precision_are_refused(small_prior):
    with pytest.raises(DetectorError, match="other weights of 'cifar10'"):
        create("distildire", fingerprints=["0" * 12])
    with pytest.raises(ValueError, match=r"dtype=torch\.float32"):
        DireDetector(model=small_prior(16, ["cat"]).bfloat16(), network=NARROW)
    with pytest.raises(DetectorError, match="distildire sees both, image, noise; got 'depth'"):
        create("distildire", sees="depth")


# ---- what is descended


def test_without_a_teacher_the_loss_is_that_of_the_labels(prior, images):
    made, labels = DistilDireDetector(model=prior, network=NARROW).eval(), torch.tensor([0, 1] * 3)
    terms = made.losses(made.lessons(images), labels)
    expected = binary_cross_entropy_with_logits(made(images), labels.float())
    assert list(terms) == ["classes"]
    torch.testing.assert_close(made.total(terms), expected)


@pytest.mark.parametrize("raw", [False, True])
def test_a_teacher_adds_the_distance_of_its_features(prior, images, raw):
    torch.manual_seed(0)
    teacher = DireDetector(model=prior, network=NARROW)
    student = DistilDireDetector(model=prior, network=NARROW, raw=raw).taught_by(teacher, 0.5)
    student.eval()
    labels, lessons = torch.tensor([0, 1] * 3), student.lessons(images)
    assert lessons.shape[1] == 9
    terms = student.losses(lessons, labels)
    own, shown = (
        student.network.maps(student.features(images)),
        teacher.network.maps(teacher.features(images)),
    )
    if not raw:
        own, shown = (each / each.norm(dim=1, keepdim=True).clamp(min=1e-12) for each in (own, shown))
    apart = (own - shown).square()
    torch.testing.assert_close(terms["teacher"], 0.5 * (apart.mean() if raw else apart.sum(1).mean()))
    student.total(terms).backward()
    assert student.network.conv1.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_distance_of_directions_does_not_know_lengths(generator):
    maps = torch.rand(2, 5, 3, 3, generator=generator)
    assert distance(maps, 7 * maps) < 1e-6
    assert distance(maps, maps.flip(1)) > 0.1
    # orthogonal at every place: two unit vectors are the square root of two apart
    one, other = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    one[:, 0], other[:, 1] = 3, 0.1
    assert distance(one, other) == pytest.approx(2)


def test_a_student_learns_the_features_of_its_teacher(prior, images):
    torch.manual_seed(0)
    teacher = DireDetector(model=prior, network=NARROW)
    student = DistilDireDetector(model=prior, network=NARROW, epochs=30, learning_rate=3e-3, batch_size=6)
    student.taught_by(teacher, 10)
    labels = torch.tensor([0, 1] * 3)

    @torch.no_grad()
    def apart():
        return student.losses(student.lessons(images), labels)["teacher"].item()

    before = apart()
    student.learn(images, labels, generator=torch.Generator().manual_seed(0))
    assert apart() < before * 2 / 3


def test_a_teacher_that_does_not_fit_is_refused(prior, small_prior):
    student = DistilDireDetector(model=prior, network=NARROW)
    torch.manual_seed(5)
    other = small_prior(16, ["cat"])
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(DetectorError, match="another diffusion model"):
        student.taught_by(DireDetector(model=other, network=NARROW))
    with pytest.raises(DetectorError, match="32 features and the student 16: give both the same network"):
        student.taught_by(DireDetector(model=prior, network={**NARROW, "width": 16}))
    with pytest.raises(DetectorError, match="0 or more; got -1"):
        student.taught_by(DireDetector(model=prior, network=NARROW), -1)


# ---- how lessons are varied


def test_a_picture_is_mirrored_with_all_its_maps(generator):
    lessons = torch.rand(40, 9, 8, 8, generator=generator)
    varied = mirrored(lessons, torch.Generator().manual_seed(0))
    same = (varied == lessons).flatten(1).all(1)
    turned = (varied == lessons.flip(-1)).flatten(1).all(1)
    assert (same ^ turned).all()
    assert 8 < turned.sum() < 32


def test_cnndetection_blurs_and_recompresses_by_chance(images):
    images = torch.nn.functional.interpolate(images, size=48, mode="bicubic").clamp(0, 1)
    never = CnnDetector(network=NARROW, probability=0)
    varied = never.augmented(images, torch.Generator().manual_seed(0))
    assert all(
        torch.equal(one, other) or torch.equal(one, other.flip(-1))
        for one, other in zip(varied, images, strict=True)
    )
    one = images[:1]
    torch.testing.assert_close(CnnDetector(network=NARROW)._handled(one, 0.9, 0.5, 0.1, 0.5), jpeg(one, 65))
    blurred = CnnDetector(network=NARROW)._handled(one, 0.1, 0.9, 0.9, 0.5)
    assert blurred.std() < one.std() / 1.2
    assert CnnDetector(network=NARROW)._handled(one[..., :4, :4], 0.1, 0.99, 0.9, 0.5).shape[-1] == 4
    with pytest.raises(ValueError, match="a probability lies in"):
        CnnDetector(probability=2)


# ---- what is remembered


def test_maps_are_computed_once_and_taken_from_the_folder(prior, images, tmp_path, monkeypatch):
    made = DireDetector(model=prior, network=NARROW)
    expected = made.features(images)
    made.remember(tmp_path)
    torch.testing.assert_close(made.features(images), expected)

    def nothing(model, some):
        raise AssertionError("computed again")

    monkeypatch.setitem(distildire._MAPS, "dire", nothing)
    again = DireDetector(model=prior, network=NARROW).remember(tmp_path)
    order = torch.tensor([3, 0, 3])
    torch.testing.assert_close(again.features(images[order]), expected[order])
    with pytest.raises(AssertionError, match="computed again"):
        again.features(images.flip(-1))


def test_maps_of_another_model_are_refused(prior, images, tmp_path, small_prior):
    DireDetector(model=prior, network=NARROW).remember(tmp_path).features(images)
    other = small_prior(16, ["cat"])
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(StaleCacheError, match="other settings"):
        DireDetector(model=other, network=NARROW).remember(tmp_path)


def test_a_taught_student_computes_the_maps_of_its_teacher_once(prior, images, tmp_path, monkeypatch):
    teacher = DireDetector(model=prior, network=NARROW)
    student = DistilDireDetector(model=prior, network=NARROW).taught_by(teacher).remember(tmp_path)
    expected = student.lessons(images)
    torch.testing.assert_close(expected[:, -3:], teacher.features(images))

    def nothing(model, some):
        raise AssertionError("computed again")

    for name in ("dire", "noise"):
        monkeypatch.setitem(distildire._MAPS, name, nothing)
    assert torch.equal(student.lessons(images), expected)
