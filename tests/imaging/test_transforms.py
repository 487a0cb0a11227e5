"""Transforms equal the real thing going forward and have the right gradients going back."""

from io import BytesIO

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torch.autograd import gradcheck

from imaging.transforms import (
    crop_and_resize,
    gaussian_blur,
    gaussian_noise,
    gaussian_taps,
    jpeg,
    quantize_bits,
    resize,
)


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 7 + 1), np.cos(columns / 9), np.sin((rows + 2 * columns) / 23)]
    return (np.stack(waves, -1) * 100 + 128).astype(np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def through_pillow(pixels: np.ndarray, quality: int, subsampling: str) -> torch.Tensor:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return as_images(np.array(Image.open(file)))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("quality", [10, 25, 50, 75, 90, 95, 100])
@pytest.mark.parametrize(("make", "height", "width"), [(smooth, 64, 96), (smooth, 67, 81), (noise, 50, 71)])
def test_jpeg_equals_pillows(subsampling, quality, make, height, width):
    pixels = make(height, width)
    error = (jpeg(as_images(pixels), quality, subsampling=subsampling) * 255).round()
    error = (error - through_pillow(pixels, quality, subsampling) * 255).abs()
    # On noise, a few coefficients lie so near a rounding boundary that libjpeg's integer arithmetic decides.
    assert error.mean() < 0.6
    assert (error <= 2).float().mean() > 0.9
    if make is smooth:
        assert error.mean() < 0.3
        assert error.max() <= 20


def test_jpeg_gives_whole_levels_and_the_default_halves_the_colours():
    images = as_images(noise(40, 40))
    levels = jpeg(images, 75) * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert torch.equal(jpeg(images, 75), jpeg(images, 75, subsampling="4:2:0"))
    assert not torch.equal(jpeg(images, 75), jpeg(images, 75, subsampling="4:4:4"))


def test_each_image_can_have_its_own_jpeg_quality():
    images = torch.cat([as_images(noise(33, 41)), as_images(smooth(33, 41))])
    together = jpeg(images, torch.tensor([30.0, 90.0]))
    torch.testing.assert_close(together[:1], jpeg(images[:1], 30), rtol=0, atol=1e-5)
    torch.testing.assert_close(together[1:], jpeg(images[1:], 90), rtol=0, atol=1e-5)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_the_gradient_of_jpeg_is_that_of_the_codec_without_rounding(subsampling, generator):
    # Straight through, 4:4:4 is the identity; 4:2:0 smooths the colours by a fixed linear map.
    images = (as_images(smooth(32, 32)) * 0.5 + 0.25).requires_grad_()
    direction = torch.randn(images.shape, generator=generator)
    (gradient,) = torch.autograd.grad((jpeg(images, 90, subsampling=subsampling) * direction).sum(), images)
    if subsampling == "4:4:4":
        torch.testing.assert_close(gradient, direction, rtol=0, atol=1e-4)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    flat = torch.tensor([0.3, -0.2, 0.5]).view(1, 3, 1, 1)
    for kept in (luma * direction[:, :1], flat.expand_as(images)):  # what smoothing the colours cannot change
        output = jpeg(images, 90, subsampling=subsampling)
        (gradient,) = torch.autograd.grad((output * kept).sum(), images)
        torch.testing.assert_close(gradient, kept, rtol=0, atol=1e-4)


def test_perturbations_along_the_gradient_through_jpeg_survive_it(generator):
    original = as_images(smooth(48, 48)) * 0.6 + 0.2
    weights = torch.randn(original.shape, generator=generator)
    images = original.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((jpeg(images, 75) * weights).sum(), images)
    gain = (jpeg(original + gradient.sign() * 8 / 255, 75) - jpeg(original, 75)) * weights
    assert gain.sum() > 0


def test_jpeg_refuses_impossible_settings():
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="between 1 and 100"):
        jpeg(images, 0)
    with pytest.raises(ValueError, match="between 1 and 100"):
        jpeg(images, torch.tensor([50.0, 101.0]))
    with pytest.raises(ValueError, match="'4:2:2'"):
        jpeg(images, 75, subsampling="4:2:2")  # pyrefly: ignore


@pytest.mark.parametrize("sigma", [0.6, 1.0, 1.5, 3.0])
def test_blur_equals_scipys(sigma):
    images = as_images(noise(37, 45)).double()
    kernel = 2 * int(np.ceil(3 * sigma)) + 1
    expected = scipy.ndimage.gaussian_filter(
        images[0].numpy(), (0, sigma, sigma), mode="mirror", radius=(0, kernel // 2, kernel // 2)
    )
    torch.testing.assert_close(gaussian_blur(images, sigma)[0], torch.from_numpy(expected), rtol=0, atol=1e-6)
    assert torch.equal(gaussian_blur(images, sigma), gaussian_blur(images, sigma, kernel))


def test_blur_keeps_flat_images_and_refuses_even_kernels():
    flat = torch.full((1, 3, 9, 9), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, 1.0), flat)
    assert gaussian_taps(1.5, 11).sum().item() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"odd, got 1\.0 and 4"):
        gaussian_blur(flat, 1.0, 4)
    with pytest.raises(ValueError, match="positive"):
        gaussian_blur(flat, 0.0, 3)


@pytest.mark.parametrize("transform", [lambda x: gaussian_blur(x, 1.0), lambda x: resize(x, 0.5)])
def test_smooth_transforms_have_the_gradients_of_finite_differences(transform, generator):
    images = (torch.rand(1, 3, 8, 9, generator=generator, dtype=torch.float64) * 0.2 + 0.4).requires_grad_()
    assert gradcheck(transform, images)


def test_cropping_has_the_gradients_of_finite_differences(generator):
    images = (torch.rand(2, 3, 8, 9, generator=generator, dtype=torch.float64) * 0.2 + 0.4).requires_grad_()
    assert gradcheck(lambda x: crop_and_resize(x, 0.25, generator=torch.Generator().manual_seed(3)), images)


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.9, 2.0])
def test_resizing_keeps_shape_range_and_flat_images(scale):
    images = as_images(noise(41, 57))
    resized = resize(images, scale)
    assert resized.shape == images.shape
    assert 0 <= resized.min() <= resized.max() <= 1
    flat = torch.full_like(images, 0.3)
    torch.testing.assert_close(resize(flat, scale), flat)
    with pytest.raises(ValueError, match="positive"):
        resize(images, 0.0)


def test_shrinking_equals_pillows_bicubic():
    pixels = smooth(64, 96)
    small = np.array(Image.fromarray(pixels).resize((48, 32), Image.Resampling.BICUBIC))
    expected = np.array(Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC))
    error = (resize(as_images(pixels), 0.5) - as_images(expected)).abs() * 255
    assert error.mean() < 0.5
    assert error.max() < 3


def test_noise_has_its_spread_and_repeats_with_its_generator():
    images = torch.full((2, 3, 64, 64), 0.5)
    noisy = [gaussian_noise(images, 0.05, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*noisy)
    assert (noisy[0] - images).std().item() == pytest.approx(0.05, rel=0.05)
    assert not torch.equal(noisy[0][0], noisy[0][1])


def test_crops_differ_per_image_and_repeat_with_their_generator():
    ramp = torch.linspace(0, 1, 60).expand(4, 3, 50, 60)
    crops = [crop_and_resize(ramp, 0.3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*crops)
    assert crops[0].shape == ramp.shape
    starts = crops[0][:, 0, 0, 0]
    assert len(starts.unique()) > 1
    spans = crops[0][:, 0, 0, -1] - starts
    torch.testing.assert_close(spans, torch.full((4,), 0.7), rtol=0, atol=0.03)
    torch.testing.assert_close(crop_and_resize(ramp, 0.0), ramp)
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.0"):
        crop_and_resize(ramp, 1.0)


@pytest.mark.parametrize("bits", [1, 4, 5, 8])
def test_bit_reduction_has_that_many_levels_and_identity_gradients(bits):
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reduced = quantize_bits(images, bits)
    assert len(reduced.detach().mul(2**bits - 1).round().unique()) == 2**bits
    assert (reduced - images).abs().max() <= 0.5 / (2**bits - 1) + 1e-6
    reduced.sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))  # pyrefly: ignore
    with pytest.raises(ValueError, match="one to sixteen bits"):
        quantize_bits(images, 0)


@pytest.mark.parametrize(
    "transform",
    [
        lambda x: jpeg(x, 75),
        lambda x: resize(x, 0.5),
        lambda x: gaussian_blur(x, 1.0),
        lambda x: quantize_bits(x, 4),
    ],
)
def test_a_result_does_not_depend_on_the_rest_of_the_batch(transform):
    images = torch.cat([as_images(noise(32, 40)), as_images(smooth(32, 40))])
    torch.testing.assert_close(transform(images)[1:], transform(images[1:]), rtol=0, atol=1e-6)
