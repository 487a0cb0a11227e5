"""Maps of words: what they are, what reaches them, and that two models never share one."""

import pytest
import torch

from diffusion.attention import AttentionMap, attentions, recorded_attention
from diffusion.pixel import PixelDiffusion
from unlearn.text.attention import normalised, recording, token_maps


def _map(weights):
    return AttentionMap("layer", True, weights)


def test_weights_that_prefer_no_token_are_1_everywhere_and_tokens_share_what_there_is():
    coarse, fine = torch.full((2, 3, 4, 5), 0.2), torch.rand(2, 3, 16, 5).softmax(-1)
    found = token_maps([_map(coarse)], (8, 8))
    torch.testing.assert_close(found, torch.ones(2, 5, 2, 2))
    both = token_maps([_map(coarse), _map(fine)], (8, 8))
    assert both.shape == (2, 5, 4, 4)
    torch.testing.assert_close(both.mean(1), torch.ones(2, 4, 4))
    byhand = (1 + 5 * fine.mean(1).mT.unflatten(-1, (4, 4))) / 2
    torch.testing.assert_close(both, byhand)
    torch.testing.assert_close(normalised(both).mean((2, 3)), torch.ones(2, 5))


def test_maps_of_a_picture_that_is_not_square_keep_its_shape():
    assert token_maps([_map(torch.rand(1, 1, 15, 2))], (12, 20)).shape == (1, 2, 3, 5)
    assert token_maps([_map(torch.rand(1, 1, 6, 2))], (5, 9)).shape == (1, 2, 2, 3)
    with pytest.raises(ValueError, match="no halving of 8x8"):
        token_maps([_map(torch.rand(1, 1, 15, 2))], (8, 8))
    with pytest.raises(ValueError, match="smaller pictures"):
        token_maps([], (8, 8))


def test_what_is_recorded_is_cross_attention_of_few_places(builtin, prompts):
    z, t = torch.randn(1, 16, 8, 8), torch.full((1,), 500)
    told = builtin.condition(prompts[:1])
    with torch.no_grad(), recorded_attention(builtin.denoiser) as everything:
        plain = builtin.predict(z, t, told)
    with torch.no_grad(), recorded_attention(builtin.denoiser, cross_only=True, most_queries=4) as few:
        again = builtin.predict(z, t, told)
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-4)
    wanted = [each for each in everything if each.cross and each.queries <= 4]
    assert [each.layer for each in few] == [each.layer for each in wanted]
    assert 0 < len(few) < len([each for each in everything if each.cross])
    assert set(attentions(builtin.denoiser, cross_only=True)) == {e.layer for e in everything if e.cross}


def test_a_network_that_looks_at_no_words_is_refused(small_prior):
    model = small_prior(16, ("ant", "bee"))
    assert isinstance(model, PixelDiffusion)
    with pytest.raises(ValueError, match="no cross-attention"):
        recording(model.denoiser)


def test_two_models_that_are_recorded_together_keep_their_own_maps(builtin, prompts):
    student = builtin.trainable_copy().eval()
    with torch.no_grad():
        for layer in attentions(student.denoiser, cross_only=True).values():
            layer.to_q.weight.mul_(3)
    z, t, told = torch.randn(1, 16, 8, 8), torch.full((1,), 500), builtin.condition(prompts[:1])
    with torch.no_grad(), recording(builtin.denoiser) as alone:
        builtin.predict(z, t, told)
    with torch.no_grad(), recording(builtin.denoiser) as taught, recording(student.denoiser) as own:
        builtin.predict(z, t, told)
        student.predict(z, t, told)
    assert len(taught) == len(own) == len(alone)
    assert all(torch.equal(a.weights, b.weights) for a, b in zip(alone, taught, strict=True))
    assert not any(torch.allclose(a.weights, b.weights) for a, b in zip(own, taught, strict=True))
