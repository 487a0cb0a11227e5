import pytest
import torch

from diffusion.tape import NoiseTape

LIKE = torch.zeros(3, 2, 4, 4)


def test_noise_depends_on_seed_and_number_and_not_on_the_batch():
    tape = NoiseTape(torch.tensor([5, 6, 7]))
    torch.testing.assert_close(tape.noise(2, LIKE)[1:2], NoiseTape(torch.tensor([6])).noise(2, LIKE[:1]))
    assert torch.equal(tape.noise(2, LIKE), tape.noise(2, LIKE))
    for other in (tape.noise(3, LIKE), tape.noise(2, LIKE, 1)):
        assert not torch.equal(tape.noise(2, LIKE), other)


def test_equal_seeds_share_one_draw():
    noise = NoiseTape(torch.tensor([5, 5, 5])).noise(0, LIKE)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[:1], NoiseTape(torch.tensor([5])).noise(0, LIKE[:1]))


def test_neighbouring_seeds_and_numbers_are_unrelated_and_standard_normal():
    like = torch.zeros(200, 1, 40, 40)
    noise = torch.cat([NoiseTape(torch.arange(200)).noise(number, like) for number in range(3)]).flatten(1)
    assert abs(noise.mean()) < 0.005
    assert noise.var() == pytest.approx(1, abs=0.01)
    correlations = torch.corrcoef(noise) - torch.eye(600)
    assert correlations.abs().max() < 6 / 40  # six standard errors, over 180,000 pairs


def test_dtype_and_place_are_those_of_the_argument():
    tape = NoiseTape(torch.tensor([5, 6, 7]))
    assert tape.noise(0, LIKE.double()).dtype == torch.float64
    torch.testing.assert_close(tape.noise(0, LIKE.double()).float(), tape.noise(0, LIKE))


def test_fresh_tapes_differ_and_follow_the_generator():
    assert not torch.equal(NoiseTape.fresh(4).seeds, NoiseTape.fresh(4).seeds)
    one, other = (NoiseTape.fresh(4, torch.Generator().manual_seed(3)).seeds for _ in range(2))
    assert torch.equal(one, other)
    assert len(one.unique()) == 4


def test_a_tape_of_another_length_is_refused():
    with pytest.raises(ValueError, match="the tape holds 2 seeds; got a batch of 3"):
        NoiseTape(torch.tensor([1, 2])).noise(0, LIKE)
