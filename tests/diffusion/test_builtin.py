"""The shipped weights: what their card says of them holds, on pictures that no training saw."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from diffusion.load import BUILTIN, load
from diffusion.losses import denoising_loss
from imaging.io import read
from imaging.metrics import psnr

EXAMPLES = Path(__file__).parents[2] / "examples"
PIXELS, ONE_STEP = BUILTIN / "cifar10", BUILTIN / "cifar10_one_step"
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture(scope="module")
def model():
    return load("builtin")


@pytest.fixture(scope="module")
def photos():
    """The four example photographs at 256 px."""
    images = [read(EXAMPLES / f"{name}.png").pixels for name in PHOTOS]
    return torch.cat([interpolate(i, size=256, mode="bicubic", antialias=True).clamp(0, 1) for i in images])


@pytest.fixture(scope="module")
def latents(model, photos):
    with torch.no_grad():
        return model.encode(photos)


def weights(folder):
    """The weights that a folder's card is about: not those of a folder inside with a card of its own."""
    others = [] if folder != BUILTIN else [PIXELS, ONE_STEP]
    return [path for path in folder.rglob("*.safetensors") if not any(one in path.parents for one in others)]


@pytest.mark.parametrize("folder", [BUILTIN, PIXELS, ONE_STEP], ids=lambda folder: folder.name)
def test_the_files_are_the_ones_on_the_card(folder):
    card = (folder / "README.md").read_text()
    listed = dict(re.findall(r"\| `([^`]+\.safetensors)` \| \d+ \| `([0-9a-f]{64})` \|", card))
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in weights(folder)
    }
    assert listed == found


def test_the_weights_are_small_enough_to_travel_with_every_clone():
    assert sum(path.stat().st_size for path in weights(BUILTIN)) <= 24 * 2**20
    assert sum(path.stat().st_size for path in weights(PIXELS)) <= 14 * 2**20
    assert sum(path.stat().st_size for path in weights(ONE_STEP)) <= 4 * 2**20


def test_photographs_survive_the_autoencoder(model, photos, latents):
    with torch.no_grad():
        values = psnr(photos, model.decode(latents))
    assert values.mean() >= 25, values


@pytest.mark.parametrize("decile", range(10))
def test_the_denoiser_beats_the_best_linear_guess_at_every_noise_level(model, latents, decile):
    generator = torch.Generator().manual_seed(decile)
    condition = model.condition(["a photo"])
    losses, guesses = [], []
    for time in (100 * decile + 20, 100 * decile + 80):
        t, noise = torch.full((4,), time), torch.randn(latents.shape, generator=generator)
        with torch.no_grad():
            losses.append(denoising_loss(model, latents, noise, t, condition).mean())
        z_t, target = model.schedule.add_noise(latents, noise, t), model.target(latents, noise, t)
        factor = (z_t * target).sum() / z_t.square().sum()
        guesses.append((target - factor * z_t).square().mean())
    assert sum(losses) < 0.9 * sum(guesses)


def test_colour_words_act(model, latents):
    """The right colours lower the loss: these captions name what the pictures are full of."""
    right = [
        "a photo of a woman, orange and grey, bright",
        "a photo of a cat, tan and brown, mid tone",
        "a photo of a cup, red and brown, dark",
        "a photo of a rocket, black and blue, dark",
    ]
    wrong = [right[2], right[3], right[0], right[1]]
    generator, difference = torch.Generator().manual_seed(0), []
    for time in range(300, 1000, 50):
        t, noise = torch.full((4,), time), torch.randn(latents.shape, generator=generator)
        with torch.no_grad():
            pair = [
                denoising_loss(model, latents, noise, t, model.condition(words)) for words in (wrong, right)
            ]
        difference.append((pair[0] - pair[1]).mean())
    assert sum(difference) > 0


def test_the_inpainting_denoiser_beats_the_linear_guess_too(photos, latents):
    painter = load("builtin-inpainting")
    masks = torch.zeros(4, 1, 256, 256)
    masks[..., 96:160, 96:160] = 1
    condition = painter.inpainting(painter.condition(["a photo"]), photos, masks)
    t, noise = torch.full((4,), 500), torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = denoising_loss(painter, latents, noise, t, condition).mean()
    assert loss < 0.9 * painter.target(latents, noise, t).square().mean()
