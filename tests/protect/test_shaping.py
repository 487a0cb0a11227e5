"""Shapes keep their bound in bytes, do to each pixel what they say, and leave the optimum known."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from attacks import Linf, pgd
from imaging.metrics import spectral_split
from imaging.quantize import quantize
from imaging.transforms import gaussian_blur
from protect.methods import create
from protect.picture import protect_image
from protect.shaping import Shape, ascend, shaping

EPS = 8 / 255
SHAPES = [shape for shape in get_args(Shape) if shape != "none"]


def bytes_of(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The left is flat, the right busy, and some values lie at the ends of the range.
IMAGES = torch.full((2, 3, 24, 32), 0.5)
IMAGES[..., 16:] = torch.rand(2, 3, 24, 16, generator=seeded(1))
IMAGES[0, 0, :4], IMAGES[1, 1, :4] = 0.0, 1.0
IMAGES = bytes_of(IMAGES)
FREE = {
    "signs": (torch.rand(2, 3, 24, 32, generator=seeded(2)) < 0.5) * 2 * EPS - EPS,
    "up": torch.full((2, 3, 24, 32), EPS),
    "uniform": (2 * torch.rand(2, 3, 24, 32, generator=seeded(3)) - 1) * EPS,
}


def changed(shape: Shape, free: Tensor) -> Tensor:
    """The change in the file, in levels."""
    shaped = shaping(shape, IMAGES, EPS)
    assert shaped is not None
    return (quantize(IMAGES + shaped(free), IMAGES, EPS) - IMAGES) * 255


@pytest.mark.parametrize("free", FREE.values(), ids=FREE)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bound_holds_before_and_after_rounding(shape, free):
    shaped = shaping(shape, IMAGES, EPS)
    assert shaped is not None
    assert shaped(free).abs().max() <= EPS + 1e-7
    assert changed(shape, free).abs().max() <= 8 + 1e-4


@pytest.mark.parametrize("free", FREE.values(), ids=FREE)
def test_luma_changes_all_colours_alike_even_where_one_is_full_or_empty(free):
    change = changed("luma", free)
    torch.testing.assert_close(change, change[:, :1].expand_as(change), rtol=0, atol=1e-3)
    assert change.abs().max() > 0.9


def deviation_at(image: Tensor, row: int, column: int) -> float:
    """The Gaussian-weighted deviation of the colours' mean around a pixel, written out."""
    grey, reach, height, width = image.mean(0).double(), 6, image.shape[1], image.shape[2]
    weights, mean, square = 0.0, 0.0, 0.0
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            weight = math.exp(-(down**2 + right**2) / (2 * 2.0**2))
            value = grey[min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)].item()
            weights, mean, square = weights + weight, mean + weight * value, square + weight * value**2
    return math.sqrt(max(0.0, square / weights - (mean / weights) ** 2))


def test_local_contrast_bounds_each_pixel_of_the_file_by_the_deviation_around_it():
    levels = changed("local-contrast", FREE["signs"]).abs()
    for row, column in [(12, 3), (12, 14), (3, 16), (23, 31), (0, 20), (10, 17)]:
        allowed = min(max(255 * deviation_at(IMAGES[0], row, column), 2.0), 8.0)
        pixel = levels[0, :, row, column]
        inside = pixel[(IMAGES[0, :, row, column] > EPS) & (IMAGES[0, :, row, column] < 1 - EPS)]
        torch.testing.assert_close(inside, torch.full_like(inside, math.floor(allowed)), rtol=0, atol=1e-3)
    assert levels[:, :, 12:, :8].max() == pytest.approx(2, abs=1e-3)  # a quarter of 8 where nothing happens
    assert levels[..., 20:].max() == pytest.approx(8, abs=1e-3)


def test_blurguard_blurs_flat_regions_most_and_busy_ones_least():
    shaped = shaping("blurguard", torch.cat([IMAGES[:1, :, 8:, :16], IMAGES[:1, :, 8:, 16:]]), EPS)
    assert shaped is not None
    free = FREE["signs"][:, :, 8:, :16]
    flat, busy = shaped(free)
    for made, sigma in ((flat, 2.0), (busy, 0.5)):
        kernel = 2 * int(3 * sigma + 0.5) + 1
        expected = gaussian_blur(free, sigma, kernel)[0 if made is flat else 1]
        torch.testing.assert_close(made[:, 6:-6, 6:-6], expected[:, 6:-6, 6:-6])


def test_blurguard_leaves_a_constant_change_as_it_is():
    shaped = shaping("blurguard", IMAGES, EPS)
    assert shaped is not None
    torch.testing.assert_close(shaped(FREE["up"]), FREE["up"])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_differentiable_as_it_says(shape):
    shaped = shaping(shape, IMAGES[:1, :, 8:16, 12:20].double(), EPS)
    assert shaped is not None
    # Inside the range, where nothing is clamped.
    free = (FREE["uniform"][:1, :, 8:16, 12:20].double() / 100).requires_grad_()
    assert torch.autograd.gradcheck(shaped, free, atol=1e-8)


def test_luma_reaches_the_optimum_of_a_linear_objective():
    weights = torch.randn(3, 16, 16, generator=seeded(4))
    images = torch.full((1, 3, 16, 16), 0.5)
    found = ascend(
        lambda seen: (weights * seen).flatten(1).sum(1),
        images,
        Linf(EPS),
        shaping("luma", images, EPS),
        steps=20,
        step_size=1 / 255,
        random_start=True,
        generator=seeded(),
    )
    torch.testing.assert_close(found, images + EPS * weights.mean(0).sign())


def test_without_a_shape_ascending_is_pgd():
    def objective(seen: Tensor) -> Tensor:
        return seen.sin().flatten(1).sum(1)

    how = {"steps": 3, "step_size": 1 / 255}
    expected = pgd(objective, IMAGES, Linf(EPS), random_start=True, generator=seeded(), **how)
    found = ascend(objective, IMAGES, Linf(EPS), None, random_start=True, generator=seeded(), **how)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_off_the_mask_nothing_changes_and_the_callback_sees_what_will_be_seen(world, shape):
    mask = torch.zeros(1, 1, 24, 32)
    mask[..., 4:20, 10:30] = 1
    seen = []
    found = create("photoguard", steps=4, shape=shape).protect(
        IMAGES,
        world,
        mask=mask,
        generator=seeded(),
        callback=lambda step, images, losses: seen.append(images),
    )
    off = (mask == 0).expand_as(IMAGES)
    assert torch.equal(found[off], IMAGES[off])
    assert (found != IMAGES).any()
    assert torch.equal(seen[-1], found)
    assert all((images - IMAGES).abs().max() <= EPS + 1e-6 for images in seen)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_survival_go_together_and_batches_equal_their_pictures(world, shape):
    method = create("mist", steps=4, shape=shape, survive=("jpeg", "blur"))
    alone = [method.protect(IMAGES[i : i + 1], world, generator=seeded(5)) for i in range(2)]
    torch.testing.assert_close(method.protect(IMAGES, world, generator=seeded(5)), torch.cat(alone))


def test_a_blurred_perturbation_has_less_high_frequency():
    images, weights = torch.full((1, 3, 32, 32), 0.5), torch.randn(3, 32, 32, generator=seeded(6))
    shares = []
    for shape in ("none", "blurguard"):
        found = ascend(
            lambda seen: (weights * seen).flatten(1).sum(1),
            images,
            Linf(EPS),
            shaping(shape, images, EPS),
            steps=20,
            step_size=1 / 255,
        )
        shares.append(spectral_split(images, found).high.item())
    assert shares[1] < 0.1 * shares[0]


def test_a_picture_in_tiles_keeps_its_colours_under_luma(world):
    image = bytes_of(torch.rand(1, 3, 70, 100, generator=seeded(7)))
    protected = protect_image(image, "photoguard", world, shape="luma", steps=5, precision="float32")
    change = (protected - image) * 255
    apart = change.amax(1) - change.amin(1)
    # Half a level rounds up from some values and down from others.
    assert apart.max() <= 1.001
    assert (apart > 0.5).float().mean() < 0.002
    assert change.abs().max() == pytest.approx(8, abs=1e-3)


def test_an_unknown_shape_is_named():
    with pytest.raises(
        ValueError, match="shape is one of none, luma, local-contrast, blurguard; got 'lumma'"
    ):
        create("mist", shape="lumma")
