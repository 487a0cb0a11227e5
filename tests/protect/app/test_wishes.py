"""What people ask for, as methods, budgets and models."""

import pytest
import torch

from diffusion.known import KNOWN
from imaging.picture import Picture
from protect.app.wishes import (
    PURPOSES,
    STRENGTHS,
    Wish,
    mask_from,
    models_here,
    names_of_methods,
    recipe_of,
    sketch_of,
)
from protect.cli import STRENGTHS as OF_THE_COMMAND
from protect.methods import METHODS


def test_strengths_are_those_of_the_command():
    assert {name: level for name, (_, level) in STRENGTHS.items()} == OF_THE_COMMAND


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_every_purpose_is_served_within_its_strength(purpose, strength):
    wish = Wish(purpose, strength)

    assert wish.name in METHODS
    assert wish.made.eps == STRENGTHS[strength][1] / 255


def test_every_method_of_the_table_can_be_chosen_and_sketched_within_its_budget():
    for _, name in names_of_methods():
        sketch, _ = sketch_of(Wish(strength="max", method=name))

        assert sketch.eps == 16 / 255
        assert not sketch.needs_mask
        assert sketch.steps <= 8


def test_the_automatic_choice_and_the_shipped_models_are_offered():
    names = [name for _, name in models_here()]

    assert names[0] == "auto"
    assert "builtin" in names
    assert not {name for name in names if name in KNOWN and KNOWN[name].kind == "pixel"}
    assert "cifar10" in [name for _, name in models_here(denoiser=True)]


def test_settings_reach_the_recipe():
    recipe, chosen = recipe_of(Wish("editing", "light", model="builtin", steps=3, survive=("jpeg",)))

    assert (recipe.name, recipe.method.steps, recipe.method.survive) == ("mist-textural", 3, ("jpeg",))
    assert recipe.method.eps == 6 / 255
    assert chosen.label == "builtin"


def test_a_painted_mask_takes_the_size_of_the_picture():
    alpha = torch.zeros(1, 1, 20, 10, dtype=torch.uint8)
    alpha[..., 5:10, 2:4] = 200
    painted = Picture(torch.zeros(1, 3, 20, 10, dtype=torch.uint8), alpha=alpha)

    mask = mask_from(painted, 40, 20)

    assert mask is not None
    assert mask.shape == (1, 1, 40, 20)
    assert mask[..., 10:20, 4:8].all()
    assert mask.sum() == 10 * 4


def test_nothing_painted_is_no_mask():
    bare = Picture(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    clear = Picture(bare.integers, alpha=torch.zeros(1, 1, 8, 8, dtype=torch.uint8))

    assert mask_from(bare, 8, 8) is None
    assert mask_from(clear, 8, 8) is None


def test_a_portrait_without_a_painted_face_is_refused_in_words():
    with pytest.raises(ValueError, match="needs a mask"):
        recipe_of(Wish("portrait"))
