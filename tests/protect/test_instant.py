"""The instant mode: one pass of a network, bounded whatever its weights are, and no model beside it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from attacks import NonFiniteError
from diffusion.known import MissingWeightsError
from imaging.io import read
from protect import protect_image
from protect.cli import app
from protect.generator import CONFIG, WEIGHTS, Generator, from_folder
from protect.methods import create
from protect.methods.instant import BUILTIN
from protect.stand_in import StandIn

ROOT = Path(__file__).parents[2]
SMALL = {"widths": [8, 8], "depths": [1, 1], "patch": 4, "push": 2.0}


@pytest.fixture
def folder(tmp_path):
    """Write a small random network, its weights multiplied by `factor`, and return its folder."""

    def write(factor=1.0, name="trained", **changes):
        torch.manual_seed(0)
        path = tmp_path / name
        path.mkdir()
        network = Generator(**SMALL)
        torch.nn.init.normal_(network.write.weight, std=0.1)  # which begins at zero: one texture for all
        weights = {key: value * factor for key, value in network.state_dict().items()}
        save_file(weights, path / WEIGHTS)
        (path / CONFIG).write_text(json.dumps(SMALL | {"surrogates": ["builtin"]} | changes))
        return path

    return write


def random(*shape, seed=0):
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return (images * 255).round() / 255


def told(arguments):
    """What the command says on failure."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    return result.stderr


@pytest.mark.parametrize("factor", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_bound_holds_whatever_the_weights_are(folder, factor, precision):
    images = random(2, 3, 40, 56)
    method = create("instant", eps=5 / 255, weights=str(folder(factor)))
    found = method.protect(images, precision=precision)
    assert (found - images).abs().max() <= 5 / 255 + 1e-7
    assert found.min() >= 0
    assert found.max() <= 1


def test_weights_that_overflow_stop_with_an_error_and_not_with_a_grey_picture(folder):
    with pytest.raises(NonFiniteError, match="is not finite"):
        create("instant", weights=str(folder(float("inf")))).protect(random(1, 3, 16, 16))


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (16, 16), (23, 8), (65, 33)])
def test_a_picture_of_any_size_keeps_its_size_and_changes(size):
    images = random(1, 3, *size)
    found = create("instant").protect(images)
    assert found.shape == images.shape
    assert (found - images).abs().max() > 1 / 255


def test_a_batch_equals_its_pictures_one_by_one_bit_for_bit():
    images, method = random(3, 3, 24, 40), create("instant")
    alone = torch.cat([method.protect(image) for image in images.split(1)])
    assert torch.equal(method.protect(images), alone)


def test_a_change_is_proportional_to_eps_inside_the_range_of_pixels():
    images = 0.25 + 0.5 * random(1, 3, 32, 32)
    small, large = (create("instant", eps=eps / 255).protect(images) - images for eps in (4, 16))
    torch.testing.assert_close(4 * small, large, atol=1e-6, rtol=0)


def test_masked_pixels_stay_bit_for_bit_through_the_whole_pipeline():
    images, mask = random(1, 3, 48, 48), torch.zeros(1, 1, 48, 48)
    mask[..., 10:30, 5:40] = 1
    found = protect_image(images, "instant", mask=mask)
    inside = (mask > 0).expand_as(images)
    assert torch.equal(found[~inside], images[~inside])
    assert (found[inside] != images[inside]).float().mean() > 0.5


def test_what_is_far_away_has_no_part_in_a_pixels_change(folder):
    """No norm runs over the picture, so a large picture's tiles can agree."""
    network, _ = from_folder(folder())
    images = random(1, 3, 256, 64)
    other = images.clone()
    other[..., 200:, :] = 1 - other[..., 200:, :]
    before, after = network(images), network(other)
    torch.testing.assert_close(before[..., :120, :], after[..., :120, :], atol=1e-6, rtol=0)
    assert (before[..., 200:, :] - after[..., 200:, :]).abs().max() > 0.01


def test_tiles_of_a_large_picture_agree_with_the_whole_away_from_their_borders(folder, monkeypatch):
    images, settings = random(1, 3, 448, 128), {"weights": str(folder()), "eps": 64 / 255}
    whole = protect_image(images, "instant", **settings)
    init = StandIn.__init__

    def small(self):
        init(self)
        self.comfortable = 256

    monkeypatch.setattr(StandIn, "__init__", small)
    tiled = protect_image(images, "instant", **settings)
    assert (tiled - images).abs().max() <= 64 / 255 + 1e-6
    # The tiles share rows 192 to 256, where one's change fades into the other's; elsewhere nothing differs.
    apart = (tiled - whole).abs().amax((0, 1, 3)) * 255
    assert apart[:190].max() <= 1
    assert apart[-190:].max() <= 1
    jumps = (tiled - images).diff(dim=-2).abs().mean((0, 1, 3)) * 255
    assert jumps.max() < 1.5 * jumps.median()


def test_the_result_does_not_depend_on_a_model_that_is_handed_in(world):
    images = random(1, 3, 80, 80)
    assert torch.equal(protect_image(images, "instant", world), protect_image(images, "instant"))


def test_the_command_protects_without_a_diffusion_model(draw, tmp_path):
    draw("a.png")
    code = (
        "import sys, diffusion.choice\n"
        "def refuse(*_, **__): raise AssertionError('a model was loaded')\n"
        "diffusion.choice.load = refuse\n"
        "from protect.cli import app\n"
        "app(['a.png', '--method', 'instant', '--report', 'r.json'], standalone_mode=False)\n"
        "assert not {'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "model: builtin (what its network was trained against)" in done.stdout
    assert "The built-in model is small" in done.stdout
    (record,) = json.loads((tmp_path / "r.json").read_text())
    assert record["status"] == "done"
    assert 1 <= record["linf"] <= 8
    assert (read(tmp_path / "a.protected.png").pixels - read(tmp_path / "a.png").pixels).abs().max() > 0


def test_naming_a_model_is_refused_in_one_line(draw):
    error = told([str(draw("a.png")), "--method", "instant", "--model", "sd15"])
    assert error == (
        "protect: this method runs a network that was trained against builtin, and no model;"
        " leave --model out\n"
    )


def test_asking_it_to_survive_is_refused(draw):
    with pytest.raises(ValueError, match="its network is trained"):
        create("instant", survive=("jpeg",))


def damage(path):
    path.write_bytes(path.read_bytes()[:100])


DAMAGE = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "holds no generator.safetensors"),
    "half a file": (lambda folder: damage(folder / WEIGHTS), "generator.safetensors is damaged"),
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), "has no config.json"),
    "no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "config.json is damaged"),
    "a list": (lambda folder: (folder / CONFIG).write_text("[]"), "config.json is damaged"),
    "no origin": (
        lambda folder: (folder / CONFIG).write_text(json.dumps(SMALL)),
        "does not fit its config.json",
    ),
    "another network": (
        lambda folder: (folder / CONFIG).write_text(json.dumps(SMALL | {"widths": [8, 16]})),
        "does not fit its config.json",
    ),
    "nothing": (shutil.rmtree, "is no folder of a trained network"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_absent_and_damaged_weights_are_one_line(folder, draw, name):
    path = folder()
    harm, message = DAMAGE[name]
    harm(path)
    with pytest.raises(MissingWeightsError):
        from_folder(path)
    error = told([str(draw("a.png")), "--method", "instant", "--weights", str(path)])
    assert message in error
    assert error.count("\n") == 1
    assert not list(Path(path.parent).glob("*.protected.*"))


def test_other_weights_are_another_recipe(folder):
    one, other = (create("instant", weights=str(folder(f, f"f{f}"))).origin for f in (1.0, 2.0))
    assert one.surrogates == other.surrogates == ("builtin",)
    assert one.digest != other.digest


def test_the_file_is_the_one_on_the_card_and_small():
    card = (BUILTIN / "README.md").read_text()
    ((name, digest),) = re.findall(r"\| `([^`]+\.safetensors)` \| \d+ \| `([0-9a-f]{64})` \|", card)
    content = (BUILTIN / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    assert [path.name for path in BUILTIN.glob("*.safetensors")] == [WEIGHTS]
    assert len(content) <= 3.3 * 2**20
