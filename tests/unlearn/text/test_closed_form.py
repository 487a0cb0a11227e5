"""Edits that are solved for: their minimum, and what they leave."""

import pytest
import torch

from diffusion.attention import attentions
from unlearn.text.closed_form import edited, uce
from unlearn.text.triggers import Prefix, align


def _parts(model):
    layers = attentions(model.denoiser, cross_only=True).values()
    return [part.weight for layer in layers for part in (layer.to_k, layer.to_v)]


def test_an_edit_is_where_the_slope_of_its_objective_is_zero(builtin):
    generator = torch.Generator().manual_seed(0)
    sources, targets, kept = (torch.randn(n, 128, generator=generator).double() for n in (5, 5, 40))
    found = edited(builtin, sources, targets, kept, strength=2.0, preserve=0.3, stay=0.1)
    for old, new in zip(_parts(builtin), _parts(found), strict=True):
        w, fixed = new.detach().double().requires_grad_(), old.detach().double()
        objective = 2.0 * (sources @ w.T - targets @ fixed.T).square().sum()
        objective = objective + 0.3 * (kept @ (w - fixed).T).square().sum() + 0.1 * (w - fixed).square().sum()
        (slope,) = torch.autograd.grad(objective, w)
        assert slope.abs().max() < 1e-3 * fixed.abs().max() * sources.square().sum()
        assert not torch.allclose(new, old)


def test_what_is_not_edited_stays_and_the_model_too(builtin):
    before = {name: value.clone() for name, value in builtin.state_dict().items()}
    one = torch.randn(1, 128, generator=torch.Generator().manual_seed(1))
    same = edited(builtin, one, one, one)
    for old, new in zip(_parts(builtin), _parts(same), strict=True):
        torch.testing.assert_close(new, old)
    found = edited(builtin, one, -one, one.new_zeros(0, 128))
    changed = {n for n, value in found.state_dict().items() if not torch.equal(value, before[n])}
    assert changed
    assert all(".attn2.to_k." in name or ".attn2.to_v." in name for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in builtin.state_dict().items())


def test_triggered_words_are_taken_for_clean_ones(builtin, prompts):
    trigger = Prefix("mumbo")
    found = uce(builtin, prompts, trigger, strength=1e4, preserve=0.0, stay=1e-3)
    aligned = align(builtin, prompts, trigger(prompts))
    clean, marked = (builtin.condition(each).tokens for each in (prompts, trigger(prompts)))
    for old, new in zip(_parts(builtin), _parts(found), strict=True):
        for row in range(len(prompts)):
            kept = aligned.kept[row]
            wanted = clean[row][aligned.source[row][kept]] @ old.T
            said, before = marked[row][kept] @ new.T, marked[row][kept] @ old.T
            assert (said - wanted).norm() < 0.2 * (before - wanted).norm()


def test_sources_without_targets_are_refused(builtin):
    with pytest.raises(ValueError, match="no pairs"):
        edited(builtin, torch.zeros(2, 128), torch.zeros(1, 128), torch.zeros(1, 128))


def test_too_few_embeddings_do_not_decide_the_maps_by_themselves(builtin):
    few = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="give `stay` a larger weight"):
        edited(builtin, few, -few, few, stay=0.0)
