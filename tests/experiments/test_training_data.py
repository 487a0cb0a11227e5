"""Captions, masks, crops and the folding of latents: the parts of the recipe that need no training."""

from pathlib import PurePath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.captions import caption, colour_words, shortened, subject
from experiments.masks import random_masks
from experiments.pictures import random_crop


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("n01443537_goldfish.jpg", "goldfish"),
        ("n02093754_Border_terrier.jpg", "border terrier"),
        ("monet08.jpg", "monet"),
    ],
)
def test_a_file_name_gives_the_subject(name, words):
    assert subject(PurePath(name)) == words


def test_colours_are_named_in_the_order_of_their_area():
    image = torch.zeros(3, 32, 32)
    image[0, :, :20], image[1:, :, :20] = 0.70, 0.12  # red, 20 of 32 columns; the rest black
    assert colour_words(image) == "red and black, dark, soft"
    assert caption(PurePath("n00000000_brick.jpg"), image) == "a photo of a brick, red and black, dark, soft"


@given(st.floats(0, 1, exclude_max=True))
def test_a_shortened_caption_is_made_of_parts_of_the_full_one(draw):
    full = "a photo of a brick, red and black, dark, soft"
    short = shortened(full, draw)
    assert set(short.replace(",", "").split()) <= set(full.replace(",", "").split())


@given(st.integers(0, 10_000))
def test_masks_are_binary_and_leave_nothing_undecided(seed):
    masks = random_masks(4, 32, generator=torch.Generator().manual_seed(seed))
    assert masks.shape == (4, 1, 32, 32)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert (masks.mean((1, 2, 3)) > 0.02).all()


@given(seed=st.integers(0, 10_000), zoom=st.sampled_from([1.0, 1.6]))
def test_crops_stay_in_range_and_have_the_asked_size(seed, zoom):
    image = torch.randint(256, (3, 40, 60), dtype=torch.uint8)
    crop = random_crop(image, 32, largest_zoom=zoom, generator=torch.Generator().manual_seed(seed))
    assert crop.shape == (3, 32, 32)
    assert crop.min() >= 0
    assert crop.max() <= 1


def test_folding_the_latents_changes_their_scale_and_not_the_pictures():
    from diffusers import AutoencoderKL

    from experiments.builtin import normalise_latents

    torch.manual_seed(0)
    autoencoder = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3).eval()
    images = [torch.rand(1, 3, 16, 16) for _ in range(6)]
    with torch.no_grad():
        before = [autoencoder.encode(2 * image - 1).latent_dist for image in images]
        decoded = [autoencoder.decode(posterior.mean).sample for posterior in before]
        normalise_latents(autoencoder, images)
        after = [autoencoder.encode(2 * image - 1).latent_dist for image in images]
        again = [autoencoder.decode(posterior.mean).sample for posterior in after]
    values = torch.cat([posterior.mean for posterior in after]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(1), torch.ones(3))
    torch.testing.assert_close(torch.cat(again), torch.cat(decoded), atol=1e-4, rtol=1e-3)
    ratio = torch.cat([new.std / old.std for new, old in zip(after, before, strict=True)])
    spread = torch.cat([p.mean for p in before]).transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(ratio.mean((0, 2, 3)), 1 / spread, rtol=1e-3, atol=0)
