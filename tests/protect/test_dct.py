"""Changes on the lattice of JPEG's coefficients pass JPEG as they are, in the file and across tiles."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imaging.blocks import dct, to_blocks
from imaging.quantize import quantize
from imaging.transforms import quantisation_steps
from protect.methods import create
from protect.methods.dct import lattice
from protect.picture import protect_image

EPS = 8 / 255


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def waves(height: int, width: int) -> Tensor:
    """A smooth picture of whole levels, away from the ends of the range, with colours."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    parts = [torch.sin(rows / 7 + 1) + 0 * columns, torch.cos(columns / 9) + 0 * rows]
    parts.append(torch.sin((rows + 2 * columns) / 23))
    return ((torch.stack(parts)[None] * 90 + 128).round()) / 255


def signs(images: Tensor, seed: int = 1) -> Tensor:
    """A free perturbation with something in every frequency."""
    drawn = torch.randn(images.shape, generator=seeded(seed))
    for _ in range(2):
        drawn = drawn + drawn.roll(1, -1) + drawn.roll(1, -2)
    return drawn.sign() * EPS


def pillow(images: Tensor, quality: int) -> Tensor:
    """Through libjpeg itself, colours halved."""
    pixels = (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255


def kept(images: Tensor, protected: Tensor, quality: int) -> tuple[float, float]:
    """The cosine between the change before and after JPEG, and how long it is after over before."""
    delta = (protected - images).flatten()
    left = (pillow(protected, quality) - pillow(images, quality)).flatten()
    return (left @ delta / (left.norm() * delta.norm())).item(), (left.norm() / delta.norm()).item()


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_coefficients_are_whole_steps_and_the_change_is_within_the_bound(quality):
    images = waves(40, 48)
    delta = lattice(signs(images), images, eps=EPS, quality=quality)
    torch.testing.assert_close(delta, delta[:, :1].expand_as(delta))
    steps = dct(to_blocks(255 * delta[:, :1])) / quantisation_steps(quality, images)[0]
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert steps.round().count_nonzero() > 60
    assert delta.abs().max() <= EPS + 1e-5


@pytest.mark.parametrize(("quality", "least"), [(50, 0.94), (75, 0.97), (95, 0.98)])
def test_jpeg_of_that_quality_leaves_the_change_alone(quality, least):
    images = waves(64, 96)
    protected = quantize(images + lattice(signs(images), images, eps=EPS, quality=quality), images, EPS)
    cosine, length = kept(images, protected, quality)
    assert cosine > least
    assert length == pytest.approx(1, abs=0.05)
    # The free one of which it was made, for comparison: nothing is said of changes in general.
    assert kept(images, quantize(images + signs(images), images, EPS), quality)[0] < cosine - 0.1


def test_a_better_jpeg_keeps_most_of_it_too_and_a_shifted_grid_does_not():
    images = waves(64, 96)
    protected = quantize(images + lattice(signs(images), images, eps=EPS, quality=75), images, EPS)
    assert kept(images, protected, 90)[0] > 0.9
    shifted = kept(images[..., 3:, 5:], protected[..., 3:, 5:], 75)[0]
    assert shifted < kept(images, protected, 75)[0] - 0.05


def test_it_is_a_point_of_the_lattice_already_that_is_its_own_nearest():
    images = waves(40, 48)
    once = lattice(signs(images), images, eps=EPS, quality=75)
    torch.testing.assert_close(lattice(once, images, eps=EPS, quality=75), once)


def test_blocks_at_the_ends_of_the_range_stay_in_it_and_on_the_lattice():
    images = waves(32, 32)
    images[..., :16, :] = 1.0
    images[:, :, 16:24, :16] = 3 / 255
    delta = lattice(signs(images), images, eps=EPS, quality=75)
    assert (images + delta).min() >= -1e-5
    assert (images + delta).max() <= 1 + 1e-5
    steps = dct(to_blocks(255 * delta[:, :1])) / quantisation_steps(75, images)[0]
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


def test_gradients_pass_to_the_brightness_unrounded_and_weighed_by_the_fineness_of_steps():
    images, weights = waves(16, 16), torch.randn(1, 3, 16, 16, generator=seeded(2))
    free = signs(images).requires_grad_()
    (gradient,) = torch.autograd.grad((weights * lattice(free, images, eps=EPS, quality=75)).sum(), free)
    steps = quantisation_steps(75, images)[0]
    spectrum = dct(to_blocks(weights.mean(1, keepdim=True)))
    torch.testing.assert_close(
        dct(to_blocks(gradient)), (spectrum * steps.min() / steps).expand(-1, 3, *[-1] * 4)
    )


def test_a_picture_of_many_tiles_and_odd_sides_passes_jpeg_across_them(world):
    # Tiles of 64 px overlap, and the last ones are cut by the edge.
    images = waves(131, 187)
    protected = protect_image(images, "dct-lattice", world, steps=20, precision="float32")
    assert (protected - images).abs().max() * 255 <= 8 + 1e-3
    cosine, length = kept(images, protected, 75)
    assert cosine > 0.95
    assert length == pytest.approx(1, abs=0.1)
    whole = dct(to_blocks(255 * (protected - images)[:, :1, :128, :184]))
    off = (whole / quantisation_steps(75, images)[0]).frac()
    off = torch.minimum(off.abs(), 1 - off.abs()) * quantisation_steps(75, images)[0]
    # What is left beside whole steps is the rounding of pixels: a third of a level in each coefficient.
    assert off.square().mean().sqrt() < 0.35


def test_the_method_empties_the_latent_as_far_as_the_lattice_allows(world):
    images = waves(64, 64)
    protected = create("dct-lattice", steps=30).protect(images, world, generator=seeded())
    assert world.encode(protected).norm() < world.encode(images).norm()
    # Every value may fall by 8 levels, and a step of a block's mean is one.
    assert (protected - images).mean() * 255 < -5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": 0}, "a JPEG quality is a number from 1 to 100; got 0"),
        ({"shape": "luma"}, "dct-lattice has a shape of its own and takes no other; got luma"),
    ],
)
def test_what_it_cannot_take_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        create("dct-lattice", **settings)
