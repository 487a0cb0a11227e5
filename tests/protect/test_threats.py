"""Threats against naive loops and known results, and how their results are compared."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.folder import read_folder
from diffusion.latent import LatentDiffusion
from diffusion.losses import denoising_loss
from diffusion.model import DiffusionModel
from imaging import metrics
from protect.threats import THREATS, UnknownThreatError, create, find
from protect.threats.img2img import Img2Img
from protect.threats.inpainting import Inpainting
from protect.threats.instruction import InstructionEdit
from protect.threats.learning import Learning
from protect.verify.thief import CounterMeasure, Thief, change, control, outcomes

EDITS = ("img2img", "inpainting", "instruction")
LEARNINGS = tuple(name for name in THREATS if name not in EDITS)


@pytest.fixture(scope="module")
def tiny(tiny_diffusion: Path) -> LatentDiffusion:
    """A random model that is told a text."""
    model = read_folder(tiny_diffusion, name="tiny")
    assert isinstance(model, LatentDiffusion)
    return model


@pytest.fixture(scope="module")
def repainting(tiny_inpainting: Path) -> DiffusionModel:
    return read_folder(tiny_inpainting, name="repainting")


@pytest.fixture(scope="module")
def instructed(tiny: LatentDiffusion) -> LatentDiffusion:
    """A random model with four further channels, as InstructPix2Pix has them."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config({**tiny.unet.config, "in_channels": 8})
    return LatentDiffusion(tiny.vae, unet, tiny.schedule, texts=list(tiny.texts), name="instructed")


def images(count: int = 2, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def noise(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hole(height: int = 16, width: int = 24) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., : height // 2, :] = 1
    return mask


def quick(name: str):
    """A threat that takes no time."""
    small = {"steps": 2, "guidance": 2.0}
    if name == "inpainting":
        return create(name, **small, mask=hole())
    if name in LEARNINGS:
        # the tiny tokenizer knows letters alone, and twelve at a time
        small |= {"learning_steps": 2, "samples": 2, "prompt": "b sks", "template": "a sks"}
    if name == "dreambooth":
        small |= {"rehearsed": 2}
    return create(name, **small) if name != "img2img" else create(name, **small, strength=0.5)


def model_for(name: str, tiny: DiffusionModel, instructed: DiffusionModel) -> DiffusionModel:
    return instructed if name == "instruction" else tiny


def test_img2img_is_ddim_from_the_noised_latent(world) -> None:
    """The pixel world says half of what it sees, so each step is a product."""
    pictures = images(1, 16, 16)
    timesteps = world.schedule.timesteps(10, size=(16, 16))[5:]
    alphas, sigmas = zip(*(world.schedule.level(t) for t in timesteps), strict=True)
    z_t = alphas[0] * pictures + sigmas[0] * noise((1, 3, 16, 16), 7)
    ends = [*zip(alphas[1:], sigmas[1:], strict=True), world.schedule.final]
    for alpha, sigma, (alpha_to, sigma_to) in zip(alphas, sigmas, ends, strict=True):
        said = 0.5 * z_t
        z_t = alpha_to * (z_t - sigma * said) / alpha + sigma_to * said
    made = Img2Img(steps=10, strength=0.5, guidance=1.0)(world, pictures, seed=7)
    torch.testing.assert_close(made, z_t.clamp(0, 1), atol=1e-5, rtol=0)


def test_inpainting_leaves_the_kept_part_of_a_model_of_pixels_as_it_is(world) -> None:
    pictures = images()
    made = Inpainting(steps=3, guidance=1.0, mask=hole())(world, pictures, seed=1)
    torch.testing.assert_close(made[..., 8:, :], pictures[..., 8:, :])
    assert (made[..., :8, :] - pictures[..., :8, :]).abs().mean() > 0.1


def test_an_inpainting_model_does_not_see_the_hole(repainting) -> None:
    threat = Inpainting(steps=2, mask=hole())
    pictures = images(1)
    other = torch.where(hole() > 0, images(1, seed=9), pictures)
    torch.testing.assert_close(*(threat(repainting, each, seed=1) for each in (pictures, other)))


def test_instructions_follow_two_guidances(instructed) -> None:
    """Written out from equation 3 of the paper with one forward pass for each of its three terms."""
    pictures, threat = images(1), InstructionEdit(prompt="abc", steps=3, guidance=5.0, image_guidance=1.5)
    told = instructed.editing(instructed.condition(["abc"]), pictures)
    empty = instructed.condition([""]).tokens
    z_t = noise((1, 4, 8, 12), 3)
    schedule = instructed.schedule
    timesteps = schedule.timesteps(3, size=(8, 12))
    ends = [*(schedule.level(t) for t in timesteps[1:]), schedule.final]
    with torch.no_grad():
        for t, (alpha_to, sigma_to) in zip(timesteps, ends, strict=True):
            rows = torch.cat([z_t] * 3)
            seen = torch.cat([told.concat, told.concat, torch.zeros_like(told.concat)])
            text = torch.cat([told.tokens, empty, empty])
            said = instructed.unet(torch.cat([rows, seen], 1), t, text, return_dict=False)[0]
            both, picture, neither = said.chunk(3)
            eps_hat = neither + 1.5 * (picture - neither) + 5.0 * (both - picture)
            alpha, sigma = schedule.level(t)
            z_t = alpha_to * (z_t - sigma * eps_hat) / alpha + sigma_to * eps_hat
        expected = instructed.decode(z_t)
    torch.testing.assert_close(threat(instructed, pictures, seed=3), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_depends_on_its_picture_and_its_seed_alone(name: str, tiny, instructed) -> None:
    threat, model, pictures = quick(name), model_for(name, tiny, instructed), images()
    together = threat(model, pictures, seed=5)
    alone = torch.cat([threat(model, one[None], seed=5) for one in pictures])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    paired = threat(model, pictures, seed=(5, 6))
    torch.testing.assert_close(paired[0], together[0], atol=1e-5, rtol=0)
    several = threat(model, pictures[1:], seed=(6, 5))
    torch.testing.assert_close(several, torch.stack([paired[1], together[1]]), atol=1e-5, rtol=0)
    assert not torch.allclose(several[0], several[1])


@pytest.mark.parametrize("name", EDITS)
def test_pictures_of_any_size_come_back_at_their_size(name: str, tiny, instructed) -> None:
    threat = quick(name)
    if name == "inpainting":
        threat = dataclasses.replace(threat, mask=hole(19, 23))
    made = threat(model_for(name, tiny, instructed), images(1, 19, 23), seed=0)
    assert made.shape == (1, 3, 19, 23)
    assert 0 <= made.min() <= made.max() <= 1


@pytest.mark.parametrize("name", LEARNINGS)
def test_learning_leaves_the_model_alone_and_is_settled_by_its_seed(name: str, tiny) -> None:
    threat, pictures = quick(name), images(3)
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    made = threat(tiny, pictures, seed=(1, 2))
    assert made.shape == (4, 3, 16, 24)
    torch.testing.assert_close(threat(tiny, pictures, seed=2), made[2:])
    assert not torch.allclose(made[:2], made[2:])
    other = threat(tiny, 1 - pictures, seed=2)
    assert not torch.equal(other, made[2:])  # it was the pictures that were learned
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


@pytest.mark.parametrize("name", LEARNINGS)
def test_what_is_learned_denoises_the_pictures_better(name: str, tiny) -> None:
    """On times and noises that training never drew."""
    rate = {"textual-inversion": 0.3, "low-rank": 3e-3, "dreambooth": 1e-3}[name]
    threat = dataclasses.replace(quick(name), learning_steps=20, learning_rate=rate, batch_size=2)
    if name == "dreambooth":
        threat = dataclasses.replace(threat, rehearsed=0)
    assert isinstance(threat, Learning)
    z = threat.latents(tiny, images(2))
    t, draws = torch.arange(100, 1000, 90), noise((10, *z.shape[1:]), 77)

    @torch.no_grad()
    def difficulty(model, condition) -> float:
        told = condition([threat.template])
        return float(sum(denoising_loss(model, one.expand_as(draws), draws, t, told).mean() for one in z))

    assert difficulty(*threat.learn(tiny, z, seed=0)) < difficulty(tiny, tiny.condition)


def test_names_take_a_number_and_settings() -> None:
    assert create("img2img0.25").strength == 0.25
    assert create("IMG2IMG0.5", steps=7) == Img2Img(strength=0.5, steps=7)
    assert create("low-rank8").rank == 8
    assert {name: find(name).summary for name in THREATS}.keys() == THREATS.keys()
    assert all(dataclasses.is_dataclass(create(name)) for name in THREATS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("img2mig", "unknown threat 'img2mig'; did you mean 'img2img'?"),
        ("inpainting3", "unknown threat 'inpainting3'; did you mean 'inpainting'?"),
        ("xyz", "available: img2img, inpainting"),
    ],
)
def test_a_wrong_name_gets_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownThreatError, match="unknown threat") as error:
        create(name)
    assert message in str(error.value)


def test_models_that_cannot_are_refused(tiny, repainting, instructed, tiny_autoencoder: Path) -> None:
    bare = read_folder(tiny_autoencoder, name="bare")
    for name in THREATS:
        with pytest.raises(ValueError, match="bare is an autoencoder alone"):
            quick(name)(bare, images(), seed=0)
    for name in ("img2img", *LEARNINGS):
        for model, kind in ((repainting, "inpainting"), (instructed, "instructions")):
            with pytest.raises(ValueError, match=f"is made for {kind}"):
                quick(name).check(model)
    with pytest.raises(ValueError, match="told a text alone, which InstructionEdit cannot use"):
        quick("instruction").check(tiny)
    with pytest.raises(ValueError, match="made for instructions"):
        quick("inpainting").check(instructed)
    with pytest.raises(ValueError, match="inpainting needs a mask"):
        Inpainting()(tiny, images(), seed=0)
    for model in (tiny, repainting):
        quick("inpainting").check(model)


def test_the_model_that_ships_with_the_package_gets_modest_settings(tiny) -> None:
    threat = create("img2img", strength=0.7)
    assert threat.suited(tiny) == threat
    tiny.name = "builtin"
    try:
        assert threat.suited(tiny) == Img2Img(strength=0.7, steps=20, guidance=1.0)
    finally:
        tiny.name = "tiny"


class Counted:
    """A counter-measure that darkens, and knows how often."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, pictures: Tensor) -> Tensor:
        self.seen.append(pictures)
        return pictures / 2


def test_every_result_is_compared_with_that_of_the_original_by_the_same_road(world) -> None:
    original, protected = images(1), images(1, seed=1)
    darken, same = Counted(), CounterMeasure(lambda pictures: pictures)
    counters = {"none": same, "dark": CounterMeasure(darken), "moved": CounterMeasure(darken, aligned=False)}
    threats = {"weak": Img2Img(steps=4, strength=0.25), "strong": Img2Img(steps=4, strength=0.75)}
    thieves = {name: Thief(threat, world, (1, 2)) for name, threat in threats.items()}
    found = list(outcomes(thieves, counters, original, {"protected": protected, "again": original}))
    assert len(found) == 12
    for one in found:
        threat, counter = threats[one.thief], counters[one.counter_measure].purify
        version = {"protected": protected, "again": original}[one.version]
        expected = [threat(world, counter(each), seed=(1, 2)) for each in (version, original)]
        torch.testing.assert_close([one.made, one.original], expected)
        if one.counter_measure == "moved":
            assert one.untouched is None
        else:
            torch.testing.assert_close(one.untouched, threat(world, original, seed=(1, 2)))
        if one.version == "again":
            assert all(each.damage == pytest.approx(0, abs=1e-6) for each in change(one.made, one.original))
    # three pictures for each of two counter-measures, and twelve by this test
    assert len(darken.seen) == 6 + 16


def test_comparisons_that_nobody_wants_are_not_made(world) -> None:
    darken = Counted()
    thieves = {"thief": Thief(Img2Img(steps=4), world, (1,))}
    counters = {"dark": CounterMeasure(darken)}
    versions = {"a": images(1, seed=1), "b": images(1, seed=2)}
    assert not list(outcomes(thieves, counters, images(1), versions, wanted=lambda *_: False))
    assert not darken.seen
    found = list(outcomes(thieves, counters, images(1), versions, wanted=lambda *names: names[2] == "b"))
    assert [one.version for one in found] == ["b"]
    assert len(darken.seen) == 2


def test_change_in_a_region_is_the_average_over_it() -> None:
    made, reference = images(2, 40, 40), images(2, 40, 40, seed=1)
    region = torch.zeros(1, 1, 40, 40)
    region[..., 10:30, 10:30] = 1
    found = change(made, reference, region=region)
    errors = (made - reference).square()[..., 10:30, 10:30].mean((1, 2, 3))
    for each, error in zip(found, errors, strict=True):
        assert each.psnr == pytest.approx(-10 * math.log10(error), rel=1e-5)
    elsewhere = made.clone()
    elsewhere[..., :10, :] = 0
    assert change(elsewhere, reference, region=region) == found
    whole = change(made, reference)
    torch.testing.assert_close(
        torch.tensor([each.damage for each in whole]), 1 - metrics.ssim(made, reference)
    )


def test_perceptual_distance_is_measured_where_one_is_given() -> None:
    made, reference = images(2, 40, 40), images(2, 40, 40, seed=1)
    found = change(made, reference, lpips=lambda a, b: (a - b).abs().mean((1, 2, 3)))
    expected = (made - reference).abs().mean((1, 2, 3)).tolist()
    assert [each.lpips for each in found] == pytest.approx(expected)
    assert change(made, reference)[0].lpips is None


@pytest.mark.parametrize("levels", [255, 65535])
def test_the_control_has_the_budget_of_the_protection_and_its_reach(levels: int) -> None:
    original = (images(1, 40, 40) * levels).round() / levels
    delta = torch.randint(-8, 9, original.shape, generator=torch.Generator().manual_seed(2))
    delta[..., :20, :] = 0
    protected = ((original * levels + delta) / levels).clamp(0, 1)
    noisy = control(original, protected, levels=levels)
    steps = (noisy - original) * levels
    torch.testing.assert_close(noisy * levels, (noisy * levels).round(), atol=2e-3, rtol=0)
    assert not steps[..., :20, :].any()
    assert steps.abs().max().round() == 8
    inside = (protected != original).any(1, keepdim=True) & (noisy > 0) & (noisy < 1)
    assert set(steps[inside.expand_as(steps)].round().int().tolist()) == {-8, 8}
    assert (noisy - original).square().sum() >= 0.99 * (protected - original).square().sum()
    torch.testing.assert_close(control(original, protected, levels=levels), noisy)
