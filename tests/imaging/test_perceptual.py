"""LPIPS equals torchmetrics' network with the same weights, and a naive loop."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.functional.image.lpips import _LPIPS

from imaging.perceptual import Lpips

OTHER_HEADS = ("lin0.weight", "lin2.weight", "lin3.weight", "lin4.weight")


@pytest.fixture(scope="module")
def random_weights():
    """Weights of the file's layout, with heads that are not negative, as LPIPS' are."""
    torch.manual_seed(0)
    state = Lpips().state_dict()
    return {name: each.abs() if name.startswith("lin") else each for name, each in state.items()}


@pytest.fixture(scope="module")
def lpips(random_weights):
    made = Lpips()
    made.load_state_dict(random_weights)
    return made


@pytest.fixture(scope="module", params=["random", "published"])
def weights(request, tmp_path_factory):
    """The file of the published weights, or one of random ones."""
    if request.param == "published":
        return request.getfixturevalue("data") / "perceptual" / "lpips_alex_fp16.safetensors"
    path = tmp_path_factory.mktemp("weights") / "lpips.safetensors"
    state = request.getfixturevalue("random_weights")
    save_file({name: tensor.half() for name, tensor in state.items()}, path)
    return path


def pair(height, width, batch=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, height, width, generator=generator)
    spread = torch.linspace(0.02, 0.3, batch).view(-1, 1, 1, 1)
    return images, (images + spread * torch.randn(images.shape, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="module")
def both(weights):
    """Ours, and torchmetrics' own network, built without a download and holding the same weights."""
    lpips = Lpips.from_file(weights)
    theirs = _LPIPS(pretrained=False, pnet_rand=True, net="alex")
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    state = {}
    for name, tensor in lpips.state_dict().items():
        kind, *rest = name.split(".")
        if kind == "features":
            state[f"net.slice{slices[int(rest[0])]}.{'.'.join(rest)}"] = tensor
        else:
            state[f"{kind}.model.1.weight"] = state[f"lins.{kind[3]}.model.1.weight"] = tensor
    theirs.load_state_dict(state)
    return lpips, theirs.eval()


@pytest.mark.parametrize("size", [(31, 31), (32, 32), (64, 80), (97, 33)])
def test_it_equals_torchmetrics_with_the_same_weights(both, size):
    lpips, theirs = both
    images, reference = pair(*size)
    with torch.no_grad():
        expected = theirs(images, reference, normalize=True).flatten()
    found = lpips(images, reference)
    assert found.min() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_stage_equals_a_naive_loop(lpips):
    """With one head alone, distance is a mean over places of a weighed sum over channels."""
    images, reference = pair(32, 36, batch=1)
    alone, state = Lpips(), lpips.state_dict()
    alone.load_state_dict({n: 0 * each if n in OTHER_HEADS else each for n, each in state.items()})
    maps = []
    for each in (images, reference):
        scaled = torch.empty_like(each)
        for channel, (mean, deviation) in enumerate(((-0.030, 0.458), (-0.088, 0.448), (-0.188, 0.450))):
            scaled[:, channel] = (each[:, channel] * 2 - 1 - mean) / deviation
        maps.append(alone.features[:5](scaled)[0])
    total, places = 0.0, maps[0].shape[1] * maps[0].shape[2]
    for row in range(maps[0].shape[1]):
        for column in range(maps[0].shape[2]):
            one, other = (each[:, row, column].tolist() for each in maps)
            lengths = [math.sqrt(sum(value**2 for value in vector)) for vector in (one, other)]
            for weight, a, b in zip(alone.lin1.weight.flatten().tolist(), one, other, strict=True):
                total += weight * (a / lengths[0] - b / lengths[1]) ** 2
    assert alone(images, reference).item() == pytest.approx(total / places, rel=1e-4)


def test_equal_images_are_no_distance_apart_and_order_does_not_matter(lpips):
    images, reference = pair(40, 40)
    assert lpips(images, images).tolist() == [0, 0, 0]
    torch.testing.assert_close(lpips(images, reference), lpips(reference, images))


def test_a_result_does_not_depend_on_the_rest_of_the_batch(lpips):
    images, reference = pair(40, 40)
    torch.testing.assert_close(lpips(images, reference)[1:2], lpips(images[1:2], reference[1:2]))


def test_its_gradient_is_the_slope_also_where_features_vanish(random_weights):
    dead = {n: -each.abs() if n == "features.10.bias" else each for n, each in random_weights.items()}
    dead["features.10.weight"] = 0 * dead["features.10.weight"]
    for state in (random_weights, dead):
        lpips = Lpips()
        lpips.load_state_dict(state)
        lpips.double()
        images, reference = (each.double() for each in pair(32, 32, batch=1))
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(lpips(leaf, reference).sum(), leaf)
        direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).double()
        ahead, behind = (lpips(images + h * direction, reference) for h in (1e-6, -1e-6))
        expected = ((ahead - behind) / 2e-6).item()
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-3)
        assert abs(expected) > 1e-4


def test_published_weights_judge_as_people_do(data):
    """A shift by one pixel is hardly seen, noise of the same mean square is, and PSNR knows no difference."""
    from imaging.io import read

    lpips = Lpips.from_file(data / "perceptual" / "lpips_alex_fp16.safetensors")
    for path in sorted((data / "images").glob("kodak*"))[:4]:
        picture = read(path).pixels[..., :256, :256]
        shifted = picture.roll(1, -1)
        noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
        noisy = picture + noise * (shifted - picture).square().mean().sqrt()
        assert lpips(shifted, picture).item() < lpips(noisy.clamp(0, 1), picture).item() / 2


@pytest.mark.parametrize("shapes", [((1, 3, 32, 32), (1, 3, 32, 33)), ((1, 3, 30, 64), (1, 3, 30, 64))])
def test_unequal_and_small_images_are_refused(lpips, shapes):
    with pytest.raises(ValueError, match="equal shape with sides of 31 pixels or more; got"):
        lpips(*(torch.zeros(shape) for shape in shapes))


def test_wrong_files_are_refused_in_one_line(tmp_path, random_weights):
    path = tmp_path / "lpips.safetensors"
    with pytest.raises(FileNotFoundError, match="there are no LPIPS weights"):
        Lpips.from_file(path)
    for content in (b"no tensors", None):
        if content is None:
            save_file({"features.0.weight": random_weights["features.0.weight"]}, path)
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match="is no safetensors file of LPIPS on AlexNet") as caught:
            Lpips.from_file(path)
        assert "\n" not in str(caught.value)
