"""Attacks made with a diffusion model: in worlds with a known answer, and on small random networks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacks import L2, Linf
from attacks.generative import (
    Ace,
    AtkPdm,
    LatentDiffAttack,
    PromptAttack,
    diff_pgd,
    feature_distance,
    perceived,
)
from attacks.generative.chain import denoised
from attacks.generative.latent import variance
from attacks.generative.prompt import _Best
from attacks.losses import cross_entropy
from diffusion.gaussian import GaussianDenoiser
from diffusion.load import load
from diffusion.schedule import NoiseSchedule

NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def network(small_prior):
    return small_prior(16, NAMES)


@pytest.fixture
def gaussian():
    """Data N(0, 0.25 I), whose sampler is affine."""
    return GaussianDenoiser(torch.zeros(3, 8, 8), 0.25, NoiseSchedule.linear())


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).eval()


@pytest.fixture
def images():
    torch.manual_seed(3)
    return torch.rand(2, 3, 16, 16)


def _labels(classifier, images):
    with torch.no_grad():
        return classifier(images).argmax(1)


def _names(labels):
    return [NAMES[label] for label in labels]


# ---- the chain that they share


def test_the_chain_of_gaussian_data_has_ddpms_gain(gaussian):
    """Whatever the number of steps, alpha_bar lambda / (alpha_bar lambda + 1 - alpha_bar)."""
    gaussian.schedule.clip = None
    images = torch.rand(1, 3, 8, 8).mul(0.2).add(0.4)
    chain = denoised(gaussian, torch.tensor([5]), t=100, steps=4)
    state, other = images, images + 0.01
    for step in chain:
        state, other = step(state, images), step(other, images)
    signal = float(gaussian.schedule.alpha[99]) ** 2
    gain = signal * 0.25 / (signal * 0.25 + 1 - signal)
    torch.testing.assert_close((other - state) / 0.01, torch.full_like(images, gain), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("t", "steps"), [(0, 1), (10, 11), (1001, 5), (5, 0)])
def test_steps_outside_the_schedule_are_refused(gaussian, classifier, t, steps):
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"from 1 to 1000; got|takes 1 to \d+ steps; got"):
        diff_pgd(gaussian, classifier, images, torch.tensor([0]), Linf(8 / 255), t=t, steps=steps)


# ---- Diff-PGD


def test_diff_pgd_finds_the_best_edit_of_an_affine_world(gaussian):
    """The edit is affine with a positive gain, so the best start is eps times the weights' signs away."""
    gaussian.schedule.clip = None
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    images, labels = torch.full((1, 3, 8, 8), 0.5), torch.tensor([0])
    ball = Linf(8 / 255)
    made = diff_pgd(
        gaussian, linear, images, labels, ball, t=100, steps=5, generator=torch.Generator().manual_seed(1)
    )
    seeds = torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(1))
    direction = (linear[1].weight[1] - linear[1].weight[0]).sign().view(1, 3, 8, 8)
    state = images + ball.eps * direction
    for step in denoised(gaussian, seeds, t=100, steps=5):
        state = step(state, images)
    torch.testing.assert_close(made, state, atol=1e-5, rtol=0)


# ---- ACE


def test_ace_flips_a_linear_classifier_and_changes_nothing_outside_its_mask(gaussian):
    gaussian.schedule.clip = None
    weight = torch.zeros(2, 3, 8, 8)
    weight[1, :, 2:4, 2:4], weight[0, :, 2:4, 2:4] = 3.0, -3.0
    bias = torch.tensor([0.0, -36.0])

    def looks_at_a_corner(images):
        return images.flatten(1) @ weight.flatten(1).T + bias

    images = torch.full((2, 3, 8, 8), 0.4)
    targets = torch.tensor([1, 1])
    assert (looks_at_a_corner(images).argmax(1) == 0).all()
    # a prior that knows of no structure removes all that is put back in: let the change through
    found = Ace(t=2, steps=1, iterations=60, step_size=4 / 255, dilation=1, penalty=0.01)(
        gaussian, looks_at_a_corner, images, targets, generator=torch.Generator().manual_seed(0)
    )
    assert (looks_at_a_corner(found.before).argmax(1) == 1).all()
    assert (looks_at_a_corner(found.images).argmax(1) == 1).all()
    assert torch.equal(found.changed[:, :, 2:4, 2:4], torch.ones(2, 1, 2, 2))
    assert found.changed.mean() < 0.5
    outside = (found.changed == 0).expand_as(images)
    assert torch.equal(found.images[outside], images[outside])


def test_the_l1_penalty_keeps_pixels_that_do_not_matter(gaussian):
    images, flat = torch.full((1, 3, 8, 8), 0.4), nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    nn.init.zeros_(flat[1].weight)
    found = Ace(t=2, steps=1, iterations=10)(gaussian, flat, images, torch.tensor([1]))
    # with nothing to gain, sign steps do not leave the penalty's corner by more than one step
    assert (found.before - images).abs().max() <= 1.01 / 255


def test_places_that_changed_are_widened_as_a_naive_loop_does():
    images = torch.zeros(1, 3, 9, 9)
    before = images.clone()
    before[0, :, 4, 4], before[0, 0, 0, 0] = 0.5, 0.1
    changed = Ace(dilation=3, threshold=0.15).changed(before, images)
    share = before.sum(1, keepdim=True) / 1.5
    for row in range(9):
        for column in range(9):
            window = share[0, 0, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            assert changed[0, 0, row, column] == float(window.max() >= 0.15)


def test_ace_refuses_an_even_square(gaussian, classifier):
    with pytest.raises(ValueError, match="odd side of a square; got 4"):
        Ace(dilation=4)(gaussian, classifier, torch.rand(1, 3, 8, 8), torch.tensor([0]))


# ---- DiffAttack in latents


def test_the_latent_attack_lowers_the_labels_probability(network, classifier, images):
    labels = _labels(classifier, images)
    seen = []
    attack = LatentDiffAttack(steps=10, kept=2, iterations=8, rate=0.05)
    made = attack(
        network, classifier, images, labels, _names(labels), callback=lambda *told: seen.append(told[2])
    )
    with torch.no_grad():
        assert (cross_entropy(classifier(made), labels) > seen[0]).all()
    assert made.shape == images.shape
    assert 0 <= made.min() <= made.max() <= 1
    assert not made.requires_grad


def test_a_picture_under_the_latent_attack_does_not_depend_on_its_neighbours(network, classifier, images):
    labels = _labels(classifier, images)
    attack = LatentDiffAttack(steps=10, kept=2, iterations=3)
    together = attack(network, classifier, images, labels, _names(labels))
    alone = attack(network, classifier, images[1:], labels[1:], _names(labels[1:]))
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=0)


def test_a_mask_without_words_is_refused(network, classifier, images):
    labels = _labels(classifier, images)
    with pytest.raises(ValueError, match=r"mask 'soft' is made of the attention to words.* is told none"):
        LatentDiffAttack(mask="soft")(network, classifier, images, labels, _names(labels))


def test_a_hard_mask_changes_part_of_the_picture_alone(images):
    torch.manual_seed(4)
    classifier = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(192, 3)).eval()
    images = F.interpolate(images[:1], size=(64, 64), mode="bicubic").clamp(0, 1)
    attack = LatentDiffAttack(steps=10, kept=1, iterations=1, mask="hard")
    made = attack(load("builtin"), classifier, images, _labels(classifier, images), ["a boat"])
    kept = (made == images).all(1)
    assert 0.01 < kept.float().mean() < 0.99


def test_structure_keeps_self_attention_nearer_the_originals(network, classifier, images):
    from diffusion.attention import recorded_attention

    labels = _labels(classifier, images)
    apart = []
    for structure in (0.0, 1e6):
        attack = LatentDiffAttack(steps=10, kept=2, iterations=6, rate=0.05, structure=structure)
        made = attack(network, classifier, images, labels, _names(labels))
        maps = []
        for which in (images, made):
            with torch.no_grad(), recorded_attention(network.denoiser) as seen:
                network.predict(network.encode(which), torch.zeros(2, dtype=torch.long))
            maps.append(seen[0].weights)
        apart.append(float((maps[0] - maps[1]).square().mean()))
    assert apart[1] < apart[0]


@pytest.mark.parametrize("mask", ["none", "soft", "hard"])
def test_the_latent_attack_on_a_model_that_reads(mask):
    """Words are distracted from; a mask keeps more of the original."""
    builtin = load("builtin")
    torch.manual_seed(0)
    images = F.interpolate(torch.rand(1, 3, 8, 8), size=(64, 64), mode="bilinear")
    judge = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(192, 3)).eval()
    labels = _labels(judge, images)
    attack = LatentDiffAttack(steps=10, kept=2, iterations=4, rate=0.05, mask=mask)
    seen = []
    made = attack(
        builtin, judge, images, labels, ["a red house"], callback=lambda *told: seen.append(float(told[2]))
    )
    assert seen[-1] > seen[0]
    assert made.shape == images.shape


def test_the_variance_of_attention_is_over_places_and_words_of_one_picture():
    seen = torch.rand(2, 5, 4)
    words = torch.tensor([[False, True, True, False], [False, True, False, False]])
    expected = torch.stack([seen[0, :, 1:3].var(), seen[1, :, 1].var()])
    torch.testing.assert_close(variance(seen, words), expected)


@pytest.mark.parametrize(
    ("settings", "prompts", "message"),
    [
        ({"kept": 21}, ["ant", "ant"], "1 to 20 can be kept; got 21"),
        ({}, ["ant"], "one prompt for each image"),
    ],
)
def test_the_latent_attack_says_what_is_wrong(network, classifier, images, settings, prompts, message):
    with pytest.raises(ValueError, match=message):
        LatentDiffAttack(**settings)(network, classifier, images, torch.tensor([0, 1]), prompts)


# ---- P2P


def test_a_trained_prompt_fools_or_leaves_the_original(network, images):
    """The classifier reads the brightness, which the model paints by what it is told."""
    centre = images.mean((1, 2, 3))

    def brightness(pictures):
        change = pictures.mean((1, 2, 3)) - centre[: len(pictures)]
        return torch.stack([0 * change, 100 * change - 0.1], dim=1)

    labels = torch.zeros(2, dtype=torch.long)
    attack = PromptAttack(below=400, rounds=40, rate=0.1, likeness=0.1)
    found = attack(
        network, brightness, images, labels, ["ant", "bee"], generator=torch.Generator().manual_seed(0)
    )
    said = brightness(found.images).argmax(1)
    assert torch.equal(said != labels, found.fooled)
    assert found.fooled.any()
    assert torch.equal(found.images[~found.fooled], images[~found.fooled])
    assert ((found.timesteps >= 0) == found.fooled).all()
    assert not torch.equal(found.rows, network.rows(["ant", "bee"]))


def test_only_the_words_of_a_prompt_are_trained():
    builtin = load("builtin")
    torch.manual_seed(0)
    images = torch.rand(1, 3, 64, 64)
    judge = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(192, 3)).eval()
    attack = PromptAttack(below=400, rounds=2, rate=0.1, decay=0.0)
    found = attack(builtin, judge, images, _labels(judge, images), ["a red house"])
    moved = (found.rows - builtin.rows(["a red house"])).abs().sum(2)[0] > 1e-6
    assert torch.equal(moved, builtin.words(["a red house"])[0])


def test_the_smallest_timestep_wins_and_then_the_nearest_picture():
    original = torch.zeros(1, 3, 2, 2)
    best, yes = _Best(original), torch.tensor([True])
    offered = [(30, 0.3), (10, 0.9), (10, 0.5), (10, 0.7), (20, 0.1)]
    for t, value in offered:
        best.update(original + value, torch.tensor([value**2]), yes, t)
    assert float(best.images.mean()) == pytest.approx(0.5)
    assert int(best.timesteps) == 10
    best.update(original + 0.01, torch.tensor([1e-4]), ~yes, 0)
    assert int(best.timesteps) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"below": 0}, "got below=0"), ({"rounds": 0}, "rounds=0"), ({}, "one prompt for")],
)
def test_p2p_says_what_is_wrong(network, classifier, images, settings, message):
    prompts = ["ant"] if not settings else ["ant", "ant"]
    with pytest.raises(ValueError, match=message):
        PromptAttack(**settings)(network, classifier, images, torch.tensor([0, 1]), prompts)


# ---- AtkPDM


def _inside(network, made, images):
    """The distance of features at one time and noise that the attack has not seen."""
    objective = feature_distance(network, images, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        return torch.stack([objective(made) for _ in range(8)]).mean(0)


@pytest.mark.parametrize("ball", [Linf(8 / 255), L2(1.0)], ids=repr)
def test_features_move_further_than_under_noise_of_the_same_size(network, images, ball):
    made = AtkPdm(steps=15, step_size=2 / 255)(
        network, images, ball=ball, generator=torch.Generator().manual_seed(0)
    )
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).sign()
    noise = (images + ball.project((made - images).abs().mean() * noise)).clamp(0, 1)
    assert (ball.distance(made - images) <= ball.eps * (1 + 1e-5)).all()
    assert (_inside(network, made, images) > 1.5 * _inside(network, noise, images)).all()


def test_fidelity_leads_a_picture_back(network, images):
    def far(one, other):
        return 1e4 * (one - other).square().flatten(1).mean(1)

    free = AtkPdm(steps=8, step_size=8 / 255, fidelity_bound=2.0)
    unheld = free(network, images, generator=torch.Generator().manual_seed(0))
    held = free(network, images, fidelity=far, generator=torch.Generator().manual_seed(0))
    assert (far(held, images) < far(unheld, images)).all()


def test_a_further_objective_is_ascended_with_the_features(network, classifier, images):
    labels = _labels(classifier, images)

    def fooled(pictures):
        return cross_entropy(classifier(pictures), labels)

    settings = {"ball": Linf(8 / 255)}
    alone = AtkPdm(steps=8)(network, images, **settings, generator=torch.Generator().manual_seed(0))
    both = AtkPdm(steps=8)(
        network, images, **settings, objective=fooled, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        assert (fooled(both) > fooled(alone)).all()


def test_the_change_can_be_made_in_an_autoencoders_latent(network, images):
    codec = load("builtin")
    made = AtkPdm(steps=2, step_size=0.05)(network, images, codec=codec)
    assert made.shape == images.shape
    bounded = AtkPdm(steps=2, step_size=0.05)(network, images, codec=codec, ball=Linf(4 / 255))
    assert (bounded - images).abs().max() <= 4 / 255 + 1e-6


def test_perceived_distance_is_zero_for_equal_pictures_and_grows(images):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    distance = perceived(layers, layers=(1, 3))
    near, far = (distance(images, (images + size * torch.randn_like(images))) for size in (0.01, 0.3))
    assert (far > near).all()


def test_atkpdm_says_what_is_wrong(network, gaussian, images):
    with pytest.raises(ValueError, match="gaussian has no U-Net"):
        AtkPdm()(gaussian, images)
    with pytest.raises(ValueError, match="at least one step is needed; got 0"):
        AtkPdm(steps=0)(network, images)
    with pytest.raises(ValueError, match="times are a range within 0 and 1000; got 5 to 5"):
        AtkPdm(times=(5, 5))(network, images)
