"""Counter-measures in words."""

import pytest
import torch

from imaging.transforms import jpeg, resize
from purify import AdverseCleaner, Blur, Chain, Crop, DiffPure, Noise
from purify.chain import parse
from purify.methods import UnknownMethodError

IMAGES = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def test_words_are_applied_in_turn():
    expected = resize(jpeg(IMAGES, 75), 0.5)
    torch.testing.assert_close(Chain("jpeg75+half")(IMAGES), expected)
    assert not torch.allclose(Chain("half+jpeg75")(IMAGES), expected)


def test_each_purifier_is_guided_by_what_the_one_before_it_left():
    expected = AdverseCleaner(bilateral=3)(Blur(2)(IMAGES))
    torch.testing.assert_close(Chain("blur2+adverse-cleaner3")(IMAGES), expected)


def test_none_leaves_the_very_images():
    assert Chain("none")(IMAGES) is IMAGES


def test_a_number_is_the_first_setting():
    assert parse("NOISE0.1") == [("noise", {"std": 0.1})]
    assert parse("diffpure50+jpeg+half") == [
        ("diffpure", {"t": 50}),
        ("jpeg", {}),
        ("resize", {"scale": 0.5}),
    ]
    assert isinstance(parse("jpeg75")[0][1]["quality"], int)


def test_noise_is_equal_for_every_image_and_call_and_differs_along_the_chain():
    chain = Chain("noise+noise")
    once, again = chain(torch.full_like(IMAGES, 0.5)), chain(torch.full_like(IMAGES, 0.5))
    assert torch.equal(once, again)
    assert torch.equal(once[0], once[1])
    assert not torch.equal(chain(torch.full_like(IMAGES, 0.5), seed=9), once)
    first = Chain("noise")(torch.full_like(IMAGES, 0.5)) - 0.5
    second = once - 0.5 - first
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.1
    assert float(second.std()) == pytest.approx(0.05, rel=0.05)


def test_only_those_that_need_a_model_load_one(network):
    loaded = []

    def prior():
        loaded.append(1)
        return network

    Chain("jpeg75+half", prior)
    assert not loaded
    chain = Chain("jpeg75+diffpure20", prior)
    assert loaded == [1]
    assert isinstance(chain.purifiers[1], DiffPure)
    assert chain.purifiers[1].rounds == [(20, 20)]
    with pytest.raises(ValueError, match="diffpure needs a diffusion model"):
        Chain("diffpure")


def test_a_crop_shifts_things_and_says_so():
    assert [Chain(words).aligned for words in ("none", "jpeg75+half", "crop", "jpeg75+crop10")] == [
        *(True, True, False, False)
    ]
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 40, 40)
    slope = Crop(50)(ramp).diff(dim=-1)[..., 5:-5]
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5 / 39), atol=1e-4, rtol=0)
    torch.testing.assert_close(Crop(0)(ramp), ramp, atol=1e-6, rtol=0)


def test_noise_has_its_deviation():
    added = Noise(0.1)(torch.full((1, 3, 64, 64), 0.5)) - 0.5
    assert float(added.std()) == pytest.approx(0.1, rel=0.05)
    assert abs(float(added.mean())) < 0.01


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("jpg75", "unknown counter-measure 'jpg75'; did you mean 'jpeg'?"),
        ("jpeg75+hlaf", "unknown counter-measure 'hlaf'; did you mean 'half'?"),
        ("jpeg75+", "unknown counter-measure ''"),
        ("jpeg75,half", "available: none, half, diffpure"),
        ("none+jpeg", "unknown counter-measure 'none'"),
    ],
)
def test_a_wrong_word_gets_the_nearest(words, message):
    with pytest.raises(UnknownMethodError) as error:
        Chain(words)
    assert message in str(error.value)


@pytest.mark.parametrize("words", ["crop100", "noise0"])
def test_a_number_out_of_range_is_refused(words):
    with pytest.raises(ValueError, match=r"percent|std"):
        Chain(words)
