"""The search for words: its projection, its draws, and that it finds what is there to find."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.losses import denoising_loss
from unlearn.text.insertion import Insertion
from unlearn.text.reactivation import Reactivation, drawn_tokens, on_simplex


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=12))
def test_the_projection_is_the_nearest_point_of_the_simplex(values):
    row = torch.tensor(values, dtype=torch.float64)
    found = on_simplex(row)
    ordered = row.sort(descending=True).values
    shifts = (ordered.cumsum(0) - 1) / torch.arange(1, len(row) + 1)
    shift = shifts[ordered > shifts][-1]  # Held, Wolfe and Crowder's closed form
    torch.testing.assert_close(found, (row - shift).clamp_min(0), atol=1e-7, rtol=0)


def test_what_may_not_be_is_never_on_the_simplex():
    row = torch.tensor([[0.2, -torch.inf, 5.0, 0.3], [-torch.inf, -4.0, -torch.inf, -4.0]])
    torch.testing.assert_close(on_simplex(row), torch.tensor([[0, 0, 1.0, 0], [0, 0.5, 0, 0.5]]))


def test_draws_are_single_tokens_as_often_as_they_are_likely_with_a_clamped_gradient():
    shares = torch.tensor([0.7, 0.0, 0.3]).repeat(1, 4000, 1).requires_grad_()
    drawn = drawn_tokens(shares, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.detach().sum(-1), torch.ones(1, 4000))
    assert float(drawn.detach()[0, :, 0].mean()) == pytest.approx(0.7, abs=0.03)
    assert not drawn.detach()[..., 1].any()
    (drawn * torch.tensor([3.0, -0.5, -7.0])).sum().backward()
    assert torch.equal(shares.grad[0, 0], torch.tensor([1.0, -0.5, -1.0]))


def test_the_search_prefers_words_under_which_the_target_is_denoised_better(builtin, prompts):
    targets = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    tried = []

    def shows(rows, words):
        tried.append((list(rows), list(words)))
        return torch.tensor([row == 0 and len(tried) == 2 for row in rows])

    search = Reactivation(tokens=2, times=4, iterations=5, learning_rate=0.1, weight_decay=0.0)
    found = search.search(builtin, prompts[:2], targets, shows, generator=torch.Generator().manual_seed(0))
    assert [rows for rows, _ in tried] == [[0, 1], [0, 1], [1], [1]]
    assert (found[0].success, found[0].times) == (True, 2)
    assert (found[1].success, found[1].times) == (False, 4)
    assert found[0].words == tried[1][1][0]
    for each in found:
        assert each.survived == (len(builtin.text.read(each.words)) == 2) or each.words


@torch.no_grad()
def test_what_the_search_ascends_is_the_loss_of_inserted_tokens(builtin, prompts):
    table = builtin.text.vocabulary()[0]
    ids = torch.tensor([[315, 263]])
    room = Insertion(builtin, prompts[:1], 2)
    z, t = torch.randn(1, 16, 8, 8), torch.tensor([500])
    noise = torch.randn(1, 16, 8, 8)
    hard = torch.zeros(1, 2, len(table)).scatter_(2, ids[..., None], 1.0)
    by_number = denoising_loss(builtin, z, noise, t, room.condition(table[ids]))
    by_row = denoising_loss(builtin, z, noise, t, room.condition(hard @ table))
    torch.testing.assert_close(by_number, by_row)


def test_settings_that_search_nothing_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Reactivation(tokens=0)
