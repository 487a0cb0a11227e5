"""DiffusionGuard: its gradient in closed form, its schedule, what it does to a network, and its front end."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from attacks.objectives import value_and_gradient
from diffusion.load import load
from diffusion.model import Condition
from diffusion.schedule import NoiseSchedule
from imaging.io import Picture, read, write
from protect.cli import app
from protect.methods.diffusionguard import DiffusionGuard
from protect.methods.draws import first_latent
from protect.picture import NothingToProtectError, protect_image
from protect.surrogate import load_for

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
KEPT = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
KEPT[..., 1:7, 2:6] = 1


def seeded(seed=11):
    return torch.Generator().manual_seed(seed)


def objective_of(method, world, kept=KEPT, generator=None):
    generator = generator or seeded()
    return method.objective(world, IMAGES, target=IMAGES[:1], mask=kept, generator=generator)


@pytest.mark.parametrize(("prediction", "share"), [("epsilon", 1.0), ("v", "alpha")])
def test_the_gradient_is_the_closed_form(inpainting_world, prediction, share):
    """keep * s E^T A_m^T e / |e|, where the noise e is the network's output or alpha of a velocity."""
    world = inpainting_world(prediction=prediction)
    losses, gradient = value_and_gradient(objective_of(DiffusionGuard(augment=False), world), IMAGES)
    alpha, sigma = world.schedule.level(751)
    z_t = torch.randn(1, 2, 4, 4, generator=seeded()).double().expand(2, -1, -1, -1)
    seen = 0.3 * F.conv2d(torch.where(KEPT > 0, IMAGES, 0.5), world.reading, stride=2)
    hole = F.max_pool2d(1 - KEPT, 2).expand(2, -1, -1, -1)
    output = F.conv2d(torch.cat([z_t, hole, seen], 1), world.mixing)
    noise = output if prediction == "epsilon" else alpha * output + sigma * z_t
    norm = noise.flatten(1).norm(dim=1)
    torch.testing.assert_close(losses, norm)
    share = alpha if share == "alpha" else share
    direction = share * noise / norm.view(-1, 1, 1, 1)
    expected = KEPT * world.to_pixels(F.conv_transpose2d(direction, world.mixing[:, 3:]))
    torch.testing.assert_close(gradient, expected)
    assert (gradient * (1 - KEPT)).abs().max() == 0


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample", "flow"])
def test_split_chain_rule_equals_one_graph(inpainting_world, prediction):
    world = inpainting_world(prediction=prediction)
    losses, split = value_and_gradient(objective_of(DiffusionGuard(augment=False), world), IMAGES)
    z_t = torch.randn(1, 2, 4, 4, generator=seeded()).double().expand(2, -1, -1, -1)

    def whole(images):
        told = world.inpainting(Condition(), images, 1 - KEPT)
        return world.predict_noise(z_t, torch.full((2,), 751), told).flatten(1).norm(dim=1)

    values, gradient = value_and_gradient(whole, IMAGES)
    torch.testing.assert_close((losses, split), (values, gradient))


def test_a_step_runs_no_network_more_often_than_it_must(inpainting_world):
    world = inpainting_world()
    objective = objective_of(DiffusionGuard(), world)
    for _ in range(3):
        value_and_gradient(objective, IMAGES)
    assert world.calls == {"encode": 6, "predict": 3}


def test_noise_is_fresh_in_each_step_and_shared_by_the_batch(inpainting_world):
    objective = objective_of(DiffusionGuard(augment=False), inpainting_world())
    twins = IMAGES[:1].expand(2, -1, -1, -1)
    (first, _), (second, _) = (value_and_gradient(objective, twins) for _ in range(2))
    assert first[0] == first[1]
    assert first[0] != second[0]


def test_times_are_taken_in_turn(inpainting_world):
    world = inpainting_world()
    objective = objective_of(DiffusionGuard(timesteps=(751, 981)), world)
    for _ in range(3):
        value_and_gradient(objective, IMAGES)
    assert world.times == [751, 981, 751]


def test_the_default_time_is_the_first_of_four_steps_and_the_alternative_that_of_fifty():
    from diffusers import PNDMScheduler

    schedule = NoiseSchedule.scaled_linear()
    released = PNDMScheduler(beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True)
    for steps, first in ((4, DiffusionGuard().timesteps[0]), (50, 981)):
        released.set_timesteps(steps)
        assert int(released.timesteps[0]) == schedule.timesteps(steps)[0] == first


def test_the_first_latent_is_as_strong_as_a_noised_one_in_any_schedule(inpainting_world):
    """Unit noise where variances are preserved; where they explode, what the network sees at that time."""
    t, told = 751, torch.zeros(2, 3, 64, 64)
    exploding = NoiseSchedule(torch.ones(1000), torch.linspace(0.01, 14.6, 1000))
    for schedule, strength in (
        (NoiseSchedule.scaled_linear(), 1.0),
        (exploding, (1 + exploding.level(t)[1] ** 2) ** 0.5),
    ):
        world = inpainting_world(schedule=schedule)
        found = first_latent(world, told, t, seeded())
        expected = strength * torch.randn(1, 2, 64, 64, generator=seeded())
        torch.testing.assert_close(found, expected.expand(2, -1, -1, -1))


def test_the_mask_that_the_model_sees_shrinks_and_the_perturbation_keeps_to_the_whole(inpainting_world):
    world, shown = inpainting_world(), []
    inpainting = world.inpainting
    world.inpainting = lambda condition, images, mask: (
        shown.append(1 - mask) or inpainting(condition, images, mask)
    )
    images = torch.rand(1, 3, 48, 48, dtype=torch.float64, generator=seeded())
    kept = torch.zeros(1, 1, 48, 48, dtype=torch.float64)
    kept[..., 5:40, 8:42] = 1
    found = DiffusionGuard(steps=8).protect(images, world, mask=kept, generator=seeded())
    sizes = {int(mask.sum()) for mask in shown}
    assert len(sizes) > 4
    assert all(((mask == 0) | (mask == 1)).all() and (mask <= kept).all() and mask.any() for mask in shown)
    moved = (found != images).any(1, keepdim=True)
    assert not (moved & (kept == 0)).any()
    assert moved.sum() > 0.9 * kept.sum()


def test_it_raises_the_norm_on_noise_that_it_never_saw_and_a_random_change_does_not(tiny_inpainting):
    model = load(str(tiny_inpainting))
    images = torch.rand(1, 3, 32, 32, generator=seeded(3))
    kept = torch.zeros(1, 1, 32, 32)
    kept[..., 4:28, 6:26] = 1
    method = DiffusionGuard(eps=16 / 255, step_size=2 / 255, steps=25)
    protected = method.protect(images, model, mask=kept, generator=seeded(1))
    signs = torch.where(torch.rand(images.shape, generator=seeded(2)) < 0.5, -method.eps, method.eps)
    z_t = torch.randn(64, 4, 16, 16, generator=seeded(99))

    @torch.no_grad()
    def norms(images):
        told = model.inpainting(model.condition([""]), images.expand(64, -1, -1, -1), 1 - kept)
        return model.predict_noise(z_t, torch.full((64,), 751), told).flatten(1).norm(dim=1)

    gain, chance = ((norms(other) - norms(images)) for other in (protected, images + kept * signs))
    assert gain.mean() > 3 * gain.std() / 64**0.5
    assert chance.mean() < 0.1 * gain.mean()


def test_nearly_every_kept_pixel_has_a_gradient_in_bfloat16(tiny_inpainting):
    from attacks import autocast

    model, kept = load(str(tiny_inpainting)), torch.zeros(1, 1, 32, 32)
    kept[..., 4:28, 6:26] = 1
    images = torch.rand(1, 3, 32, 32, generator=seeded(3))
    objective = DiffusionGuard(augment=False).objective(
        model, images, target=images, mask=kept, generator=seeded()
    )
    _, gradient = value_and_gradient(autocast(objective, torch.bfloat16), images)
    inside = gradient[..., 4:28, 6:26]
    assert (inside == 0).float().mean() < 0.001
    assert gradient.count_nonzero() == inside.count_nonzero()


def test_tiles_that_the_mask_fills_or_misses_are_protected_or_left(inpainting_world):
    """A picture of several tiles: one all white, one cut by the mask's edge, one all black."""
    original = Picture(torch.randint(0, 256, (1, 3, 64, 184), generator=seeded()).to(torch.uint8))
    kept = torch.zeros(1, 1, 64, 184, dtype=torch.bool)
    kept[..., :90] = True
    protected = protect_image(
        original, DiffusionGuard(steps=12), inpainting_world(), mask=kept, precision="float32"
    )
    change = (protected.integers.int() - original.integers.int()).abs().amax(1, keepdim=True)
    assert change[~kept].max() == 0
    assert 0 < change[kept].max() <= 8
    assert (change[..., :40] > 0).float().mean() > 0.5


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "DiffusionGuard needs a mask, a picture of the same size: white on what to protect"),
        (torch.ones(1, 1, 40, 48), "the mask is white everywhere, and DiffusionGuard guards against"),
        (torch.zeros(1, 1, 40, 48), "the mask is black everywhere"),
        (torch.ones(1, 1, 40, 40).tril(), "the mask is 40 x 40 px and the picture 48 x 40 px"),
    ],
)
def test_a_mask_that_is_missing_or_shows_one_region_only_is_refused(inpainting_world, mask, message):
    picture = Picture(torch.randint(0, 256, (1, 3, 40, 48), generator=seeded()).to(torch.uint8))
    with pytest.raises(ValueError, match=message) as refusal:
        protect_image(picture, DiffusionGuard(steps=1), inpainting_world(), mask=mask)
    assert isinstance(refusal.value, NothingToProtectError) == ("black" in message)


def test_a_missing_mask_is_noticed_before_a_model_is_loaded(draw, monkeypatch):
    monkeypatch.setattr("protect.picture.load_for", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="needs a mask"):
        protect_image(draw("a.png"), "diffusionguard")


def test_a_model_that_does_not_inpaint_is_refused(world, tiny_diffusion: Path):
    from diffusion.choice import choose

    with pytest.raises(ValueError, match="not made for inpainting, as DiffusionGuard needs it"):
        DiffusionGuard().protect(torch.rand(1, 3, 8, 8), world, mask=KEPT)
    with pytest.raises(ValueError, match="take sd15-inpainting, or builtin-inpainting to try it"):
        load_for(DiffusionGuard(), choose(str(tiny_diffusion)), device="cpu")


def test_times_out_of_range_are_refused(inpainting_world):
    with pytest.raises(ValueError, match="timesteps are one or more numbers from 0 up; got none"):
        DiffusionGuard(timesteps=())
    with pytest.raises(ValueError, match="from 0 up"):
        DiffusionGuard(timesteps=(751, -1))
    with pytest.raises(ValueError, match="has timesteps from 0 to 999; got 1000"):
        DiffusionGuard(timesteps=(1000,)).check(inpainting_world())


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run `protect` in a folder of its own and return the result."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [*arguments, "--device", "cpu", "--steps", "2"])


def paint(name: str, value: int, inside: int) -> None:
    """Write a grey mask of 48 x 40 pixels with another grey in its middle."""
    mask = torch.full((1, 3, 40, 48), value, dtype=torch.uint8)
    mask[..., 8:30, 10:35] = inside
    write(Picture(mask), name)


@pytest.mark.parametrize("method", ["diffusionguard", "photoguard-diffusion"])
def test_the_saved_file_differs_only_where_the_mask_is_white(command, draw, method):
    draw("a.png", 40, 48)
    paint("mask.png", 0, 255)
    arguments = ("--method", method, "--mask", "mask.png", "--step-size", "4")
    result = command("a.png", *arguments, "--model", "builtin-inpainting")
    assert result.exit_code == 0, result.output
    change = (read("a.protected.png").integers.int() - read("a.png").integers.int()).abs()
    inside = change[..., 8:30, 10:35].clone()
    change[..., 8:30, 10:35] = 0
    assert change.max() == 0
    assert 0 < inside.max() <= 8
    assert "repainting of all but what the mask shows white" in result.output


def test_the_automatic_model_is_one_that_inpaints(command, draw):
    draw("a.png", 40, 48)
    paint("mask.png", 0, 255)
    result = command("a.png", "--method", "diffusionguard", "--mask", "mask.png", "--offline")
    assert result.exit_code == 0, result.output
    assert "inpainting" in result.stdout.split("model: ")[1].split(".")[0]


@pytest.mark.parametrize(
    ("greys", "message"),
    [
        (None, "protect: --mask: DiffusionGuard needs a mask"),
        ((255, 255), "protect: --mask: the mask is white everywhere"),
        ((0, 100), "protect: --mask: the mask is black everywhere"),
    ],
)
def test_the_command_refuses_in_one_line_before_any_file_is_started(command, draw, greys, message):
    draw("a.png", 40, 48)
    if greys:
        paint("mask.png", *greys)
    before = sorted(path.name for path in Path.cwd().iterdir())
    result = command("a.png", "--method", "diffusionguard", *(["--mask", "mask.png"] if greys else []))
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert sorted(path.name for path in Path.cwd().iterdir()) == before
