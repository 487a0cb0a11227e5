"""What is measured in the written file, against whole-picture formulas and closed forms."""

import math

import pytest
import torch
from torch import Tensor

from diffusion.load import load
from imaging import metrics
from imaging.picture import Picture
from protect.verify import measures as verify
from protect.verify.measures import HANDLING, edit_change, edits, measure


def noisy(height: int, width: int, *, frames: int = 1, amplitude: int = 8) -> tuple[Picture, Picture]:
    generator = torch.Generator().manual_seed(0)
    shape = (frames, 3, height, width)
    original = torch.randint(30, 226, shape, generator=generator)
    change = torch.randint(-amplitude, amplitude + 1, shape, generator=generator)
    return Picture(original.to(torch.uint8)), Picture((original + change).to(torch.uint8))


def test_windows_give_what_the_whole_picture_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_WINDOW", 64)
    original, written = noisy(150, 201)
    measured = measure(original, written)
    a, b = original.pixels, written.pixels
    assert measured.linf == pytest.approx(metrics.linf(a, b).item())
    assert measured.psnr == pytest.approx(metrics.psnr(a, b).item(), rel=1e-5)
    assert measured.ssim == pytest.approx(metrics.ssim(a, b).item(), rel=1e-4)
    assert measured.changed == pytest.approx(metrics.changed_share(a, b).item(), rel=1e-5)
    for name, transform in HANDLING.items():
        whole = metrics.survival(a, b, transform).projection.item()
        assert measured.survival[name] == pytest.approx(whole, abs=0.01)


def test_an_unchanged_picture_has_infinite_psnr_and_nothing_to_survive() -> None:
    original, _ = noisy(40, 40)
    measured = measure(original, original)
    assert (measured.linf, measured.psnr, measured.changed) == (0.0, math.inf, 0.0)
    assert measured.ssim == pytest.approx(1.0, abs=1e-6)
    assert math.isnan(measured.survival["jpeg75"])


def test_the_largest_change_of_all_frames_counts() -> None:
    original, written = noisy(40, 40, frames=3)
    written.integers[:2] = original.integers[:2]
    measured = measure(original, written)
    assert measured.linf == pytest.approx(8)
    last = metrics.psnr(original.pixels[2:], written.pixels[2:]).item()
    assert measured.psnr == pytest.approx(last + 10 * math.log10(3), rel=1e-5)


def test_what_a_lossy_file_kept_is_the_share_of_what_was_intended() -> None:
    original, intended = noisy(64, 64)
    halved = original.pixels + (intended.pixels - original.pixels) / 2
    written = Picture((halved * 255).round().to(torch.uint8))
    assert measure(original, written, intended=intended).survival["file"] == pytest.approx(0.5, abs=0.02)
    assert measure(original, intended).survival["file"] == pytest.approx(1.0)


def test_sixteen_bits_are_measured_in_255ths() -> None:
    original = torch.randint(0, 60_000, (1, 3, 40, 40))
    measured = measure(Picture(original.to(torch.uint16)), Picture((original + 257 * 3).to(torch.uint16)))
    assert measured.linf == pytest.approx(3, abs=1e-3)


def test_pictures_of_other_frames_or_sides_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has 1 x 40 x 50 frames x width x height; expected 2 x 40 x 40"):
        measure(noisy(40, 40, frames=2)[0], noisy(50, 40)[0])


def test_edits_of_equal_images_are_equal_and_change_grows_with_the_perturbation(world) -> None:
    original, written = noisy(40, 44)
    clean, small = original.pixels, written.pixels
    same = edit_change(world, clean, clean)
    assert same.dissimilarity.abs().max() < 1e-6
    assert same.psnr.isinf().all()
    large = clean + 3 * (small - clean)
    lesser, greater = (edit_change(world, clean, images, seeds=(1, 2)) for images in (small, large))
    assert 0 < lesser.dissimilarity < greater.dissimilarity
    assert greater.psnr < lesser.psnr


def test_the_change_of_an_edit_does_not_depend_on_the_batch(world) -> None:
    pairs = [noisy(40, 40, amplitude=amplitude) for amplitude in (4, 12)]
    original, written = (torch.cat([pair[i].pixels for pair in pairs]) for i in range(2))
    together = edit_change(world, original, written)
    alone = torch.cat(
        [edit_change(world, a[None], b[None])[0] for a, b in zip(original, written, strict=True)]
    )
    torch.testing.assert_close(together.dissimilarity, alone)


def test_a_bare_autoencoder_reconstructs_instead(world) -> None:
    world.has_denoiser = False
    original, written = noisy(41, 50)
    made = edits(world, original.pixels, written.pixels)
    for images, expected in zip(made, (original, written), strict=True):
        assert isinstance(images, Tensor)
        torch.testing.assert_close(images, expected.pixels)


def test_an_inpainting_model_reconstructs_as_well() -> None:
    model = load("builtin-inpainting")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = edits(model, images, 1 - images)
    with torch.no_grad():
        torch.testing.assert_close(made.of_original, model.decode(model.encode(images)))
        torch.testing.assert_close(made.of_protected, model.decode(model.encode(1 - images)))


def test_edit_change_needs_a_seed(world) -> None:
    images = torch.rand(1, 3, 40, 40)
    with pytest.raises(ValueError, match="at least one seed"):
        edit_change(world, images, images, seeds=())
