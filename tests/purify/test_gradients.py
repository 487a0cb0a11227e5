"""Exact gradients at one step's graph memory equal those of the whole graph, for every purifier."""

import pytest
import torch
from torch import nn

from attacks.adaptive import BPDA, Adjoint, Checkpointed, Exact, ReplayError, ScoreOnly, Surrogate, trajectory
from purify import (
    GDMP,
    AdverseCleaner,
    Blur,
    DiffPure,
    FreqPure,
    Jpeg,
    LikelihoodMaximisation,
    ManiPure,
    Resized,
    Tiled,
)

PURIFIERS = {
    "ddpm-1": lambda model: DiffPure(model, t=100, steps=1),
    "ddpm-5": lambda model: DiffPure(model, t=100, steps=5),
    "ddpm-20": lambda model: DiffPure(model, t=100, steps=20),
    "ddim": lambda model: DiffPure(model, t=100, steps=5, sampler="ddim"),
    "dpm-solver": lambda model: DiffPure(model, t=100, steps=5, sampler="dpm-solver"),
    "sde": lambda model: DiffPure(model, t=100, steps=5, sampler="sde"),
    "ode": lambda model: DiffPure(model, t=100, steps=5, sampler="ode"),
    "rounds": lambda model: DiffPure(model, rounds=[(30, 2), (50, 3)]),
    "gdmp": lambda model: GDMP(model, t=36, steps=4, rounds=2, scale=1000.0),
    "gdmp-ssim": lambda model: GDMP(model, t=36, steps=3, rounds=1, scale=1000.0, similarity="ssim"),
    "freqpure": lambda model: FreqPure(model, t=100, steps=4),
    "freqpure-denoised": lambda model: FreqPure(model, t=100, steps=4, reference="denoised"),
    "mani-literal": lambda model: ManiPure(model, t=100, steps=3, mode="literal"),
    "mani-spatial": lambda model: ManiPure(model, t=100, steps=3, mode="spatial"),
    "mani-spectral": lambda model: ManiPure(model, t=100, steps=3, mode="spectral"),
    "likelihood": lambda model: LikelihoodMaximisation(model, steps=2),
    "resized": lambda model: Resized(GDMP(model, t=36, steps=2, rounds=1, scale=1000.0), 8),
    "tiled": lambda model: Tiled(DiffPure(model, t=10, steps=2), size=8, overlap=4, rounds=2),
    "cleaner": lambda model: AdverseCleaner(bilateral=2, guided=2),
}
SEEDS = torch.tensor([5, 6])


def images_for(name):
    side = {"resized": 10, "tiled": 12, "gdmp-ssim": 12}.get(name, 8)
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def classified(purifier, images):
    """A curved score of what comes out, one per image, and its gradient."""
    leaf = images.clone().requires_grad_()
    scores = (purifier(leaf, SEEDS) ** 3).flatten(1).sum(1)
    return scores.detach(), torch.autograd.grad(scores.sum(), leaf)[0]


@pytest.mark.parametrize("name", PURIFIERS)
def test_exact_and_checkpointed_equal_the_whole_graph(network, name):
    purifier, images = PURIFIERS[name](network), images_for(name)
    scores, gradient = classified(purifier, images)
    assert gradient.abs().max() > 1e-3
    for other in (Exact(purifier, verify=True), Checkpointed(purifier)):
        found_scores, found = classified(other, images)
        torch.testing.assert_close(found_scores, scores, rtol=0, atol=1e-9)
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-6 * gradient.abs().max().item())


@pytest.mark.parametrize("name", ["ddpm-5", "gdmp", "gdmp-ssim", "freqpure", "mani-spatial", "mani-spectral"])
def test_exact_gradients_are_directional_derivatives(network, name):
    purifier, images = PURIFIERS[name](network), images_for(name).clamp(0.2, 0.8)
    _, gradient = classified(Exact(purifier), images)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        h = 1e-5
        ahead, behind = (classified(purifier, images + sign * h * direction)[0].sum() for sign in (1, -1))
        expected = (gradient * direction).sum()
        torch.testing.assert_close((ahead - behind) / (2 * h), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["ddpm-5", "gdmp", "freqpure", "likelihood"])
def test_a_batch_of_sixteen_equals_sixteen_batches_of_one(network, name):
    purifier = Exact(PURIFIERS[name](network))
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seeds = torch.arange(16)

    def gradient(batch, dealt):
        leaf = batch.clone().requires_grad_()
        return torch.autograd.grad((purifier(leaf, dealt) ** 3).sum(), leaf)[0]

    together = gradient(images, seeds)
    alone = torch.cat([gradient(images[i : i + 1], seeds[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_the_input_reaches_a_guided_chain_by_two_routes(network):
    """Leaving out the guidance's route, as published code did, gives another gradient."""
    purifier, images = PURIFIERS["gdmp"](network), images_for("gdmp")
    _, right = classified(Exact(purifier), images)
    steps = purifier.chain(SEEDS)

    def blind(leaf, seeds):
        return trajectory([lambda s, x, step=step: step(s, x.detach()) for step in steps], leaf)[-1]

    _, wrong = classified(blind, images)
    assert (right - wrong).norm() / right.norm() > 0.05


def test_gradients_may_enter_at_every_state(network):
    steps, images = PURIFIERS["ddpm-5"](network).chain(SEEDS), images_for("ddpm-5")
    leaf = images.clone().requires_grad_()
    states = trajectory(steps, leaf)
    (found,) = torch.autograd.grad(sum((state**2).sum() for state in states), leaf)
    plain, state, total = images.clone().requires_grad_(), None, 0.0
    for step in steps:
        state = step(plain if state is None else state, plain)
        total = total + (state**2).sum()
    torch.testing.assert_close(found, torch.autograd.grad(total, plain)[0])


def test_a_step_with_randomness_of_its_own_is_found_out():
    images = torch.rand(1, 3, 4, 4, requires_grad=True)
    states = trajectory([lambda state, images: state * torch.rand(1)], images, verify=True)
    with pytest.raises(ReplayError, match="step 0 differs"):
        states[-1].sum().backward()


def test_replay_restores_the_autocast_of_the_forward_pass():
    layer, images = nn.Conv2d(3, 3, 3, padding=1), torch.rand(1, 3, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        states = trajectory([lambda state, images: layer(state)], images, verify=True)
    states[-1].float().sum().backward()
    assert images.grad is not None


def test_bpda_is_the_purifier_forward_and_the_identity_backward(network):
    purifier, images = PURIFIERS["ddpm-5"](network), images_for("ddpm-5")
    leaf = images.clone().requires_grad_()
    purified = BPDA(purifier)(leaf, SEEDS)
    torch.testing.assert_close(purified, purifier(images, SEEDS))
    cotangent = torch.randn_like(purified)
    torch.testing.assert_close(torch.autograd.grad(purified, leaf, cotangent)[0], cotangent)


def test_a_surrogate_has_the_value_of_one_and_the_gradient_of_the_other(network):
    purifier, cheaper = PURIFIERS["ddpm-20"](network), PURIFIERS["ddpm-5"](network)
    images = images_for("ddpm-5")
    leaf = images.clone().requires_grad_()
    purified = Surrogate(purifier, cheaper)(leaf, SEEDS)
    torch.testing.assert_close(purified, purifier(images, SEEDS))
    other = images.clone().requires_grad_()
    cotangent = torch.randn_like(purified)
    found = torch.autograd.grad(purified, leaf, cotangent)[0]
    torch.testing.assert_close(found, torch.autograd.grad(cheaper(other, SEEDS), other, cotangent)[0])


def test_score_only_adds_the_way_against_the_purifier(network):
    purifier, images = Blur(2.0), images_for("ddpm-5")
    leaf = images.clone().requires_grad_()
    cotangent = torch.ones_like(images)
    found = torch.autograd.grad(ScoreOnly(purifier, weight=1.0)(leaf), leaf, cotangent)[0] - cotangent
    away = images - purifier(images)
    torch.testing.assert_close(found, away / away.abs().flatten(1).mean(1).view(-1, 1, 1, 1))


def test_jpeg_differentiates_through_exact():
    images = torch.rand(1, 3, 16, 16)
    leaf = images.clone().requires_grad_()
    Exact(Jpeg(75))(leaf).sum().backward()
    plain = images.clone().requires_grad_()
    Jpeg(75)(plain).sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad)


def test_the_adjoint_is_close_and_not_exact(network):
    """It reconstructs the path to first order only; more steps bring it nearer."""
    images, errors = images_for("ddpm-5"), []
    for t, steps in ((20, 5), (20, 20)):
        purifier = DiffPure(network, t=t, steps=steps, sampler="sde", clamp=False)
        _, right = classified(Exact(purifier), images)
        scores, found = classified(Adjoint(purifier), images)
        torch.testing.assert_close(scores, (purifier(images, SEEDS) ** 3).flatten(1).sum(1))
        errors.append(((found - right).norm() / right.norm()).item())
        assert torch.cosine_similarity(found.flatten(), right.flatten(), dim=0) > 0.95
    assert 0 < errors[1] < errors[0] < 0.3


def test_the_graph_holds_one_state_per_step_and_no_network(network):
    """Counted at the moment of saving: what a backward pass will need is kept alive by these tensors."""
    images = images_for("ddpm-5")

    def kept(wrap, steps):
        sizes, purifier = [], wrap(DiffPure(network, t=100, steps=steps, clamp=False))
        leaf = images.clone().requires_grad_()

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            purifier(leaf, SEEDS)
        return sum(sizes)

    for steps in (5, 50):
        # the picture, its z, z noised, one after each step, and what is decoded
        assert kept(Exact, steps) == images.numel() * (steps + 4)
    plain = [kept(lambda purifier: purifier, steps) for steps in (5, 50)]
    assert plain[1] > 9 * plain[0] > 100 * kept(Exact, 5)
