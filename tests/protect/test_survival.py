"""Handling is drawn as it is said to be, once for a batch, and methods that expect it outlast it."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from imaging import transforms
from imaging.batch.discover import plan
from protect.command.batch import Recipe, run
from protect.command.options import OptionError, options, split_arguments
from protect.method import ProtectionMethod
from protect.methods import create
from protect.promise import Promise
from protect.survival import UNTOUCHED, check_handling, handle, lasting

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
ALL = ("jpeg", "resize", "blur")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def told(monkeypatch) -> list[tuple[str, float]]:
    """What was done, in order, with the number it was done with, in the place of doing it."""
    calls: list[tuple[str, float]] = []
    for name in ("jpeg", "resize", "gaussian_blur"):
        monkeypatch.setattr(
            transforms, name, lambda images, number, name=name: calls.append((name, number)) or images * 1.0
        )
    return calls


@pytest.mark.parametrize(
    ("kind", "done", "low", "high"),
    [("jpeg", "jpeg", 65, 95), ("resize", "resize", 0.5, 1), ("blur", "gaussian_blur", 0.3, 1)],
)
def test_one_kind_is_drawn_from_its_whole_range_and_three_tenths_are_untouched(told, kind, done, low, high):
    generator, draws = seeded(), 2000
    for _ in range(draws):
        handle(IMAGES, (kind,), generator)
    assert {name for name, _ in told} == {done}
    numbers = torch.tensor([number for _, number in told])
    harm = (numbers - low) / (high - low) if kind == "blur" else (high - numbers) / (high - low)
    assert 0 <= harm.min() < 0.1
    assert 0.99 < harm.max() <= 1
    assert harm.mean().item() == pytest.approx(2 / 3, abs=0.02)  # of a density that grows with the harm
    assert 1 - len(told) / draws == pytest.approx(UNTOUCHED, abs=0.03)


def test_of_several_kinds_any_chain_occurs_in_the_order_of_a_platform(told):
    generator, chains = seeded(), {}
    for _ in range(4000):
        told.clear()
        handle(IMAGES, ALL, generator)
        chain = tuple(name for name, _ in told)
        chains[chain] = chains.get(chain, 0) + 1
    order = ["resize", "gaussian_blur", "jpeg"]
    assert all(list(chain) == sorted(chain, key=order.index) for chain in chains)
    assert len(chains) == 8
    assert chains.pop(()) / 4000 == pytest.approx(UNTOUCHED, abs=0.03)
    # One is certain and the two others are tossed for: a quarter of the rest is each number of companions.
    by_length = [sum(n for chain, n in chains.items() if len(chain) == length) / 2800 for length in (1, 2, 3)]
    assert by_length == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def test_one_draw_serves_the_batch():
    for seed in range(12):
        alone = torch.cat([handle(IMAGES[i : i + 1], ALL, seeded(seed)) for i in range(2)])
        torch.testing.assert_close(handle(IMAGES, ALL, seeded(seed)), alone)


def test_nothing_named_leaves_the_objective_and_the_generator_alone():
    generator = seeded()
    assert lasting(torch.sum, (), generator) is torch.sum
    assert torch.equal(torch.rand(1, generator=generator), torch.rand(1, generator=seeded()))


@pytest.mark.parametrize(("kinds", "named"), [(("jpg",), "jpg"), ("jpeg", "jpeg"), (("blur", ""), "")])
def test_what_is_no_handling_is_named(kinds, named):
    with pytest.raises(ValueError, match=f"survive is a tuple of jpeg, resize, blur; got '{named}'"):
        check_handling(kinds)
    with pytest.raises(ValueError, match="survive is a tuple"):
        create("mist", survive=kinds)


def test_the_command_line_says_it_with_commas_and_unsays_it_with_none():
    available = options(create("mist", survive=("blur",)))
    assert split_arguments(["--survive", "jpeg, resize"], available)[1] == {"survive": ("jpeg", "resize")}
    assert split_arguments(["--survive", "none"], available)[1] == {"survive": ()}
    assert available["--survive"].show(("jpeg", "blur")) == "jpeg,blur"
    with pytest.raises(OptionError, match="--survive expects one of jpeg, resize, blur, or several"):
        split_arguments(["--survive", "jpg"], available)


def test_a_result_bears_the_mark_of_what_it_was_made_to_survive():
    recipe = Recipe("mist", create("mist"), "builtin", Promise("", ""))
    settings = [
        replace(recipe, method=create("mist", **given)).settings()
        for given in ({}, {"survive": ("jpeg",)}, {"shape": "luma"})
    ]
    assert settings[0] != settings[1] != settings[2] != settings[0]


def test_the_report_says_what_was_expected_and_how_it_was_shaped(world, draw):
    method = create("photoguard", steps=1, survive=("blur",), shape="luma")
    recipe = Recipe("photoguard", method, "pixel-world", Promise("", ""))
    (record,) = run(plan([str(draw("a.png"))]), recipe, lambda: world)
    assert (record.status, record.survive, record.shape) == ("done", ("blur",), "luma")


# Opposite in two neighbours and in two colours: halving colours, scaling and blurring all erase it.
FRAGILE = torch.ones(3, 32, 32)
FRAGILE[:, (torch.arange(32)[:, None] + torch.arange(32)) % 2 == 1] = -1
FRAGILE[1] *= -1
FRAGILE[2] = 0
WEIGHTS = FRAGILE + 0.8


@dataclass(frozen=True)
class Linear(ProtectionMethod):
    """Ascend a sum of pixels weighed so that most of the gain is in what handling erases."""

    paper = ""

    def objective(self, model, images, *, target, mask, generator):
        return lambda perturbed: (WEIGHTS * perturbed).flatten(1).sum(1)


HARSH = {
    "jpeg": lambda images: transforms.jpeg(images, 75),
    "resize": lambda images: transforms.resize(images, 0.6),
    "blur": lambda images: transforms.gaussian_blur(images, 0.9),
}


@pytest.mark.parametrize("kind", ALL)
def test_what_a_method_expects_it_outlasts(world, kind):
    images = torch.full((1, 3, 32, 32), 0.5)
    plain, made = (
        Linear(survive=kinds).protect(images, world, generator=seeded()) for kinds in ((), (kind,))
    )

    def gain(protected: Tensor, seen=lambda images: images) -> float:
        return (WEIGHTS * (seen(protected) - seen(images))).sum().item()

    torch.testing.assert_close(plain, images + 8 / 255 * WEIGHTS.sign())
    assert gain(made, HARSH[kind]) > 1.5 * gain(plain, HARSH[kind])
    assert gain(made) < gain(plain)
    assert (made - images).abs().max() <= 8 / 255 + 1e-6


@pytest.mark.parametrize("name", ["photoguard", "mist", "sds-minus"])
def test_a_batch_that_expects_handling_equals_its_pictures_one_by_one(world, name):
    method = create(name, steps=4, survive=ALL)
    alone = [method.protect(IMAGES[i : i + 1], world, generator=seeded(3)) for i in range(2)]
    torch.testing.assert_close(method.protect(IMAGES, world, generator=seeded(3)), torch.cat(alone))


def test_handling_is_computed_in_full_precision_while_networks_run_in_half(world, monkeypatch):
    seen = []
    real = transforms.jpeg
    monkeypatch.setattr(
        transforms, "jpeg", lambda *given: seen.append(torch.is_autocast_enabled("cpu")) or real(*given)
    )
    create("photoguard", steps=4, survive=("jpeg",)).protect(
        IMAGES, world, generator=seeded(), precision=torch.bfloat16
    )
    assert seen
    assert not any(seen)
