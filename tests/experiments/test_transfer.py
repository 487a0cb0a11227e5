"""Carry-over to a model that was left out, in a world where every shift is known."""

import pytest
import torch

from diffusion.model import Condition, PixelSpace
from diffusion.schedule import NoiseSchedule
from experiments.transfer import ITSELF, OTHERS, measure, middle, shift, table
from protect.methods.photoguard import PhotoGuard

IMAGE = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 128 + 64).round() / 255


class Pixels(PixelSpace):
    """`z` is the picture itself, so that emptying it lowers every value by `eps`."""

    has_denoiser = False

    def __init__(self):
        super().__init__(
            NoiseSchedule.linear(),
            prediction="epsilon",
            name="pixels",
            multiple=8,
            latent_channels=3,
            comfortable=64,
        )
        self.register_buffer("place", torch.zeros(1))
        self.attacked = 0
        self.freeze()

    @property
    def denoiser(self):
        raise AssertionError("nothing here denoises")

    def encode(self, images):
        self.attacked += images.requires_grad
        return images * 1.0

    def predict(self, z_t, t, condition=None):
        raise AssertionError("nothing here denoises")

    def condition(self, prompts):
        return Condition()


@pytest.fixture(scope="module")
def world():
    models = {name: Pixels() for name in ("one", "other", "third")}
    rows = list(measure({"a": IMAGE}, models, {"photoguard": PhotoGuard(steps=20)}))
    return models, rows


def test_shifts_are_those_of_the_rounded_pictures(world):
    _, rows = world
    assert len(rows) == 3 * 2 * 3
    expected = (8 / 255 * (3 * 32 * 32) ** 0.5 / IMAGE.norm()).item()
    for row in (row for row in rows if row.handling == "file"):
        assert row.shift == pytest.approx(expected, rel=1e-4)
        assert row.noise == pytest.approx(expected, rel=1e-4), "every value moved by eps, too"
        assert row.psnr == pytest.approx(30.07, abs=0.01)


def test_half_the_size_keeps_a_flat_change_and_not_the_noise(world):
    _, rows = world
    flat = next(row for row in rows if row.handling == "half")
    assert flat.shift > 0.9 * rows[0].shift
    assert flat.noise < 0.6 * rows[0].noise


def test_the_model_left_out_is_not_looked_into():
    models = {name: Pixels() for name in ("one", "other")}
    rows = measure({"a": IMAGE}, models, {"photoguard": PhotoGuard(steps=3)}, ceiling=False)
    made = [next(rows) for _ in range(3)]
    assert {(row.model, row.made_against) for row in made} == {("one", OTHERS)}
    assert (models["one"].attacked, models["other"].attacked) == (0, 3)


def test_the_table_has_a_line_for_each_attack_and_a_column_for_each_model(world):
    lines = table(world[1]).splitlines()
    assert lines[0].startswith("| method | made against | on one | on other | on third | PSNR")
    assert [line.split(" | ")[1] for line in lines[2:4]] == [OTHERS, ITSELF]
    assert lines[2].split(" | ")[2].startswith("1.00 ")
    assert lines[4].startswith("| shift by the noise |")
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_the_shift_is_relative_to_each_pictures_own_latent():
    model, batch = Pixels(), torch.stack([IMAGE[0], IMAGE[0] / 2])
    torch.testing.assert_close(shift(model, batch, 1.5 * batch), torch.tensor([0.5, 0.5]))


def test_the_middle_of_a_picture_is_cut_out():
    assert torch.equal(middle(IMAGE, 16), IMAGE[..., 8:24, 8:24])
    assert middle(IMAGE, None) is IMAGE
