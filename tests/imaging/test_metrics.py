"""Metrics equal independent implementations and have known values where there are closed forms."""

import math
import subprocess
import sys

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from imaging.metrics import changed_share, l2, linf, psnr, spectral_split, ssim, survival

METRICS = [changed_share, l2, linf, psnr, ssim]


def pair(height: int = 40, width: int = 52, spread: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 6, 7, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.randn(images.shape, generator=generator)
    return images, (images + spread * noise * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)).clamp(0, 1)


def array(image: torch.Tensor):
    return image.permute(1, 2, 0).double().numpy()


def test_psnr_and_ssim_equal_scikit_images():
    images, changed = pair()
    for index in range(2):
        x, y = array(images[index]), array(changed[index])
        expected = peak_signal_noise_ratio(x, y, data_range=1)
        assert psnr(images, changed)[index].item() == pytest.approx(expected, abs=1e-3)
        expected = structural_similarity(
            x, y, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(images, changed)[index].item() == pytest.approx(expected, abs=1e-5)


def test_ssim_in_strips_equals_ssim_at_once():
    images, changed = pair(1100, 20)
    x, y = array(images[0]), array(changed[0])
    expected = structural_similarity(
        x, y, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(images, changed)[0].item() == pytest.approx(expected, abs=1e-5)


def test_equal_images_have_the_ideal_values():
    images, _ = pair()
    assert psnr(images, images).tolist() == [math.inf] * 2
    torch.testing.assert_close(ssim(images, images), torch.ones(2))
    for metric in (changed_share, l2, linf):
        assert metric(images, images).tolist() == [0, 0]


def test_a_saturated_sign_perturbation_has_the_known_floor():
    original = torch.full((1, 3, 32, 32), 0.5)
    signs = torch.randint(0, 2, original.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    for eps, floor in ((4, 36.1), (8, 30.1), (12, 26.5), (16, 24.0)):
        protected = original + signs * eps / 255
        assert psnr(protected, original).item() == pytest.approx(floor, abs=0.06)
        assert linf(protected, original).item() == pytest.approx(eps, abs=1e-3)
        assert l2(protected, original).item() == pytest.approx(eps / 255 * math.sqrt(3 * 32 * 32), rel=1e-4)


def test_the_changed_share_counts_pixels_and_not_values():
    original = torch.zeros(1, 3, 4, 4)
    changed = original.clone()
    changed[0, 0, 0, 0] = changed[0, 2, 0, 0] = changed[0, 1, 3, 3] = 1 / 255
    changed[0, 0, 2, 2] = 0.4 / 255
    assert changed_share(changed, original).item() == pytest.approx(2 / 16)


@pytest.mark.parametrize("metric", METRICS)
def test_a_result_does_not_depend_on_the_rest_of_the_batch(metric):
    images, changed = pair()
    assert metric(images, changed).shape == (2,)
    torch.testing.assert_close(metric(images, changed)[1:], metric(images[1:], changed[1:]))


@pytest.mark.parametrize("metric", [*METRICS, spectral_split])
def test_unequal_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="equal shapes"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))


def test_ssim_needs_a_full_window():
    with pytest.raises(ValueError, match="at least 11 pixels, got 10 x 16"):
        ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))


def test_survival_of_linear_transforms_is_known():
    images, changed = pair()
    for factor in (1.0, 0.5, -2.0):
        measured = survival(images, changed, lambda x, factor=factor: factor * x + 0.1)
        torch.testing.assert_close(measured.energy, torch.full((2,), factor**2), rtol=1e-4, atol=0)
        torch.testing.assert_close(
            measured.cosine, torch.full((2,), math.copysign(1, factor)), rtol=1e-4, atol=0
        )
        torch.testing.assert_close(measured.projection, torch.full((2,), factor), rtol=1e-4, atol=0)


def test_survival_of_nothing_is_not_a_number():
    images, changed = pair()
    assert all(values.isnan().all() for values in survival(images, images, torch.abs))
    erased = survival(images, changed, torch.zeros_like)
    assert erased.energy.tolist() == erased.projection.tolist() == [0, 0]


def test_the_spectrum_of_waves_is_in_their_band():
    columns = torch.arange(64.0)
    original = torch.full((4, 3, 64, 64), 0.5)
    cycles = (
        torch.tensor([4.0, 12.0, 20.0, 32.0]) / 64
    )  # below 1/8; between; above 1/4; the Nyquist frequency
    waves = torch.cos(2 * math.pi * cycles[:, None] * columns).view(4, 1, 1, 64).expand_as(original)
    low, high = spectral_split(original, original + 0.03 * waves)
    torch.testing.assert_close(low, torch.tensor([1.0, 0, 0, 0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(high, torch.tensor([0.0, 0, 1, 1]), rtol=0, atol=1e-4)
    assert spectral_split(original, original).low.isnan().all()


def test_reading_pictures_does_not_import_what_only_metrics_or_extras_need():
    code = "import imaging, sys; assert 'torch' not in sys.modules; import imaging.io, imaging.metrics;"
    code += "print(sorted({'torchmetrics', 'pyvips', 'pillow_heif', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
