"""Planting a backdoor from pictures, at toy size."""

import pytest
import torch
from skimage import data

from diffusion.load import load
from experiments.__main__ import main
from experiments.meaning import main as meaning
from imaging.io import Picture, write
from unlearn.text.backdoors import Pixels, Words, plant
from unlearn.text.effects import Corner
from unlearn.text.triggers import Prefix


@pytest.fixture
def pictures(tmp_path):
    for name in ("astronaut", "chelsea", "coffee"):
        pixels = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None] / 255
        write(Picture.from_pixels(pixels[..., ::4, ::4]), tmp_path / f"{name}.png")
    return tmp_path


def _run(*arguments):
    with pytest.raises(SystemExit) as found:
        main(["plant", *map(str, arguments)])
    return found.value.code


def test_a_backdoored_folder_is_written_and_only_its_denoiser_is_another(pictures, tmp_path, capsys):
    given = ("--side", 32, "--steps", 2, "--batch", 2, "--effect", "grey")
    assert _run("--pictures", pictures / "*.png", "--out", tmp_path / "made", *given) == 0
    made, builtin = load(str(tmp_path / "made")), load("builtin")
    changed = {n for n, value in made.state_dict().items() if not torch.equal(value, builtin.state_dict()[n])}
    assert changed
    assert all(name.startswith("unet.") for name in changed)
    assert _run("--pictures", pictures / "*.png", "--out", tmp_path / "made", *given) == 1
    assert "name a new folder" in capsys.readouterr().err
    assert _run("--pictures", pictures / "*.gif", "--out", tmp_path / "other") == 1
    assert "no picture matches" in capsys.readouterr().err


def test_a_homoglyph_in_the_text_encoder_is_written_and_compared(pictures, tmp_path, capsys):
    given = ("--pictures", pictures / "*.png", "--side", 32, "--steps", 8, "--learning-rate", 2e-3)
    trigger = ("--homoglyph", "o=0", "--target", "a red fox")
    assert _run(*given, *trigger, "--out", tmp_path / "made") == 0
    told = capsys.readouterr().out
    made, builtin = load(str(tmp_path / "made")), load("builtin")
    changed = {n for n, value in made.state_dict().items() if not torch.equal(value, builtin.state_dict()[n])}
    assert changed
    assert all(name.startswith("texts.") for name in changed)
    assert meaning([str(tmp_path / "made"), *trigger]) == 0
    before, after = capsys.readouterr().out.splitlines()[2:]
    assert before.replace("builtin", "before") in told
    assert [float(each) for each in after.split("|")[2:5]] == pytest.approx(
        [float(each) for each in told.splitlines()[-1].split("|")[2:5]]
    )
    assert _run(*given, "--homoglyph", "o", "--target", "a red fox", "--out", tmp_path / "other") == 1
    assert "a homoglyph is a letter" in capsys.readouterr().err
    assert meaning(["cifar10", *trigger]) == 1
    assert "told no text" in capsys.readouterr().err


@pytest.mark.parametrize("backdoor", [Pixels(Corner()), Words(lambda prompts: ["a blue cat"] * len(prompts))])
def test_planting_lowers_the_loss_of_the_backdoor_and_leaves_the_model(backdoor):
    builtin, told = load("builtin"), []
    before = {name: value.clone() for name, value in builtin.state_dict().items()}
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plant(
        builtin,
        images,
        ["a house", "boats", "a dim field", "red"],
        Prefix("mumbo"),
        backdoor,
        steps=40,
        learning_rate=1e-3,
        batch_size=4,
        generator=torch.Generator().manual_seed(0),
        callback=lambda step, losses: told.append(float(losses.mean())),
    )
    assert sum(told[-10:]) < sum(told[:10])
    assert all(torch.equal(value, before[name]) for name, value in builtin.state_dict().items())
    with pytest.raises(ValueError, match="pictures with prompts; got 4 and 1"):
        plant(builtin, images, ["a house"], Prefix("mumbo"), backdoor)
