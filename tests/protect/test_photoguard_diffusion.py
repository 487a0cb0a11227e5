"""PhotoGuard's diffusion attack: exact gradients through the whole sampler, and a ball of two bounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.objectives import value_and_gradient
from diffusion.load import load
from diffusion.model import Condition
from diffusion.samplers import inpaint
from diffusion.tape import NoiseTape
from protect.methods.photoguard_diffusion import Evenly, PhotoGuardDiffusion

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
KEPT = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
KEPT[..., 1:7, 2:6] = 1


def seeded(seed=11):
    return torch.Generator().manual_seed(seed)


def objective_of(method, world, generator):
    return method.objective(world, IMAGES, target=IMAGES[:1], mask=KEPT, generator=generator)


def distance(world, images, prompt, guidance, generator):
    """The attack's loss in one graph, with DDIM at eta 1 written out (Song et al., 2021, eq. 12 and 16)."""
    told = world.inpainting(world.condition([prompt]), images, 1 - KEPT)
    untold = world.inpainting(world.condition([""]), images, 1 - KEPT)
    z = torch.randn(1, 2, 4, 4, generator=generator).double().expand(2, -1, -1, -1)
    tape = NoiseTape(NoiseTape.fresh(1, generator).seeds.expand(2))
    times = [751, 501, 251, 1]
    levels = [*(world.schedule.level(t) for t in times), world.schedule.final]
    for number, t in enumerate(times):
        (alpha, sigma), (alpha_to, sigma_to) = levels[number], levels[number + 1]
        t = torch.full((2,), t)
        output, plain = world.predict(z, t, told), world.predict(z, t, untold)
        noise = plain + guidance * (output - plain)
        clean = (z - sigma * noise) / alpha
        spread = sigma_to / sigma * (1 - (alpha / alpha_to) ** 2) ** 0.5
        z = alpha_to * clean + (sigma_to**2 - spread**2) ** 0.5 * noise + spread * tape.noise(number, z)
    return (world.decode(z, clamp=False) - 0.5).flatten(1).norm(dim=1)


@pytest.mark.parametrize("prompt", ["", "a castle"])
def test_the_gradient_is_that_of_the_whole_inpainting_in_one_graph(inpainting_world, prompt):
    world = inpainting_world()
    method = PhotoGuardDiffusion(prompt=prompt)
    found = value_and_gradient(objective_of(method, world, seeded()), IMAGES)
    draws = seeded()
    values, gradient = value_and_gradient(lambda x: -distance(world, x, prompt, 7.5, draws), IMAGES)
    torch.testing.assert_close(found, (values, gradient))
    assert (gradient * KEPT).abs().max() > 0
    assert (found[1] * (1 - KEPT)).abs().max() == 0


def test_draws_are_averaged(inpainting_world):
    world, draws = inpainting_world(), seeded()
    found = value_and_gradient(objective_of(PhotoGuardDiffusion(draws=3), world, seeded()), IMAGES)
    single = [value_and_gradient(lambda x: -distance(world, x, "", 1.0, draws), IMAGES) for _ in range(3)]
    mean = tuple(torch.stack(parts).mean(0) for parts in zip(*single, strict=True))
    torch.testing.assert_close(found, mean)


@pytest.mark.parametrize(("prompt", "predictions"), [("", 4 * 2), ("a castle", 4 * 2 * 2)])
def test_no_network_runs_more_often_than_it_must(inpainting_world, prompt, predictions):
    """A step of the sampler runs twice, forwards and again for its gradient; guidance needs a prompt."""
    world = inpainting_world()
    value_and_gradient(objective_of(PhotoGuardDiffusion(prompt=prompt, draws=2), world, seeded()), IMAGES)
    assert world.calls == {"encode": 2, "predict": 2 * predictions}


def test_what_is_repainted_becomes_greyer_on_noise_that_it_never_saw(tiny_inpainting):
    model, kept = load(str(tiny_inpainting)), torch.zeros(1, 1, 32, 32)
    kept[..., 4:28, 6:26] = 1
    images = torch.rand(1, 3, 32, 32, generator=seeded(3))
    method = PhotoGuardDiffusion(eps=16 / 255, step_size=2 / 255, steps=20)
    protected = method.protect(images, model, mask=kept, generator=seeded(1))

    @torch.no_grad()
    def greyness(images):
        images = images.expand(64, -1, -1, -1)
        made = inpaint(model, images, 1 - kept, Condition(), steps=8, generator=seeded(50))
        return (made - 0.5).flatten(1).norm(dim=1)

    nearer = greyness(images) - greyness(protected)
    assert nearer.mean() > 3 * nearer.std() / 64**0.5


@given(st.integers(0, 2**32), st.floats(0.5, 8), st.floats(1, 40))
def test_a_projection_is_the_nearest_point_within_both_bounds(seed, rms, scale):
    ball, generator = Evenly(rms / 255, 8 / 255), seeded(seed)
    delta = torch.randn(3, 3, 6, 5, generator=generator, dtype=torch.float64) * scale / 255
    found = ball.project(delta)
    assert found.abs().max() <= 8 / 255
    assert ball.distance(found).max() <= rms / 255 * (1 + 1e-9)
    torch.testing.assert_close(ball.project(found), found, atol=1e-9, rtol=0)
    for i in range(3):  # a picture's projection is its own
        torch.testing.assert_close(ball.project(delta[i : i + 1])[0], found[i], atol=0, rtol=0)
    # The nearest point of a convex set sees all others at an obtuse angle.
    for _ in range(20):
        other = torch.randn(3, 3, 6, 5, generator=generator, dtype=torch.float64) * 9 / 255
        other = (other / ball.distance(other).view(-1, 1, 1, 1) * rms / 255).clamp(-8 / 255, 8 / 255)
        angle = ((delta - found) * (other - found)).flatten(1).sum(1)
        assert angle.max() <= 1e-7


def test_the_papers_radius_at_512_pixels_is_2_3_levels_at_any_size():
    radius = 16 / 2  # of 512 px images in [-1,1], and in [0,1]
    assert 255 * radius / (3 * 512 * 512) ** 0.5 == pytest.approx(2.3, abs=0.01)
    ball = Evenly(2.3 / 255, 8 / 255)
    for side in (8, 64):
        step = ball.steepest(torch.randn(2, 3, side, side, generator=seeded()))
        torch.testing.assert_close(ball.distance(step), torch.ones(2))
        start = ball.random_start(torch.rand(1, 3, side, side), seeded())
        assert ball.distance(start).item() == pytest.approx(2.3 / 255, rel=0.1)


def test_both_bounds_hold_in_the_result(inpainting_world):
    method = PhotoGuardDiffusion(steps=6, eps=3 / 255, rms=1.2 / 255, step_size=1 / 255)
    found = method.protect(IMAGES, inpainting_world(), mask=KEPT, generator=seeded())
    change = found - IMAGES
    assert change.abs().max() <= 3 / 255 + 1e-9
    assert change.square().flatten(1).mean(1).sqrt().max() <= 1.2 / 255 + 1e-9
    assert change.abs().max() > 1.2 / 255


@pytest.mark.parametrize("settings", [{"rms": 0.0}, {"rms": -1.0}, {"draws": 0}, {"sampler_steps": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"rms must be above 0|sampler steps and draws must be at least 1"):
        PhotoGuardDiffusion(**settings)
