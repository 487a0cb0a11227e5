"""Methods that train in between: when they do, what they tell, and which models they refuse."""

import pytest
import torch
from diffusers import UNet2DModel

from diffusion.ideal import IdealDenoiser
from diffusion.load import load
from diffusion.pixel import PixelDiffusion
from diffusion.schedule import NoiseSchedule
from protect.methods import create

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model(tiny_diffusion):
    return load(str(tiny_diffusion))


def seeded():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("steps", [1, 3, 5, 12, 100])
@pytest.mark.parametrize("rounds", [1, 2, 5, 7])
def test_rounds_are_as_many_and_as_equal_as_the_steps_allow(steps, rounds):
    method = create("ace", steps=steps, rounds=rounds)
    ends = [step + 1 for step in range(steps) if method.learns_after(step)]
    assert len(ends) == min(steps, rounds)
    assert ends[-1] == steps
    lengths = [end - before for before, end in zip([0, *ends], ends, strict=False)]
    assert max(lengths) - min(lengths) <= 1


def test_the_adapters_learn_after_each_round_but_the_last_with_the_prior_made_once(model, monkeypatch):
    from protect.methods import ace

    told, made, train, imagine = [], [], ace.train, ace.imagine

    def heard(*given, **how):
        told.append((given[1].shape, how["steps"], how["prior"][0].shape, how["prior_weight"]))
        return train(*given, **how)

    def made_up(*given, **how):
        made.append(how["count"])
        return imagine(*given, steps=2, **how)

    monkeypatch.setattr(ace, "train", heard)
    monkeypatch.setattr(ace, "imagine", made_up)
    create("ace", steps=4, rounds=4, train_steps=2, prior_images=3, prior_weight=0.5).protect(
        IMAGES[:1], model
    )
    assert told == [((1, 4, 16, 16), 2, (3, 4, 16, 16), 0.5)] * 3
    assert made == [3]


@pytest.mark.parametrize("name", ["ace", "hspace-kv"])
def test_what_the_twin_learns_decides_where_the_picture_goes(model, name):
    settings = {"steps": 3, **({"prior_images": 0, "rounds": 3} if name == "ace" else {})}
    found = [
        create(name, learning_rate=rate, **settings).protect(IMAGES[:1], model, generator=seeded())
        for rate in (0.0, 0.3)
    ]
    assert not torch.equal(*found)


def test_hspace_kv_trains_the_keys_and_values_of_the_middle_and_nothing_else(model):
    method = create("hspace-kv", learning_rate=0.1)
    twin, learn = method.pupil(model, seeded())
    learn(torch.randn(1, 4, 16, 16))
    weights = model.denoiser.named_parameters()
    moved = {name for name, weight in weights if not torch.equal(weight, twin.denoiser.get_parameter(name))}
    middle = "mid_block.attentions.0.transformer_blocks.0"
    assert moved == {
        f"{middle}.{attention}.{to}.weight" for attention in ("attn1", "attn2") for to in ("to_k", "to_v")
    }
    own = {weight.data_ptr() for weight in twin.parameters()} - {
        weight.data_ptr() for weight in model.parameters()
    }
    assert len(own) == 4


@pytest.mark.parametrize("name", ["ace", "hspace-kv", "fsmg", "aspl"])
def test_a_callback_hears_of_steps_that_rise_to_the_last_and_may_stop_them(model, name):
    quick = {} if name == "hspace-kv" else {"prior_images": 0, "train_steps": 1}
    quick |= {} if name in ("hspace-kv", "fsmg") else {"rounds": 2}
    method, heard = create(name, steps=3, **quick), []
    method.protect(IMAGES, model, generator=seeded(), callback=lambda step, *_: heard.append(step))
    assert heard == sorted(heard)
    assert (heard[0], heard[-1], len(heard)) == (0, 2, 6)
    stopped = []

    def stop(step, images, losses):
        stopped.append(step)
        return len(stopped) == 2

    method.protect(IMAGES, model, generator=seeded(), callback=stop)
    assert len(stopped) == 2


def test_models_without_what_a_method_looks_for_are_refused_in_one_line(model):
    plain = IdealDenoiser(torch.rand(2, 3, 64, 64), NoiseSchedule.linear())
    for name in ("ace", "aspl", "fsmg"):
        with pytest.raises(ValueError, match="ideal has no attention to adapt"):
            create(name).protect(IMAGES, plain)
    for name in ("hspace", "hspace-kv"):
        with pytest.raises(ValueError, match="ideal has no U-Net, whose middle is looked into"):
            create(name).protect(IMAGES, plain)
    blind = UNet2DModel(
        sample_size=64,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
    )
    pixels = PixelDiffusion(blind, NoiseSchedule.linear(), name="blind")
    with pytest.raises(ValueError, match="the middle of blind attends to nothing"):
        create("hspace-kv").protect(IMAGES, pixels)
    with pytest.raises(ValueError, match="Ace takes one model, not 2 together"):
        create("ace").protect(IMAGES, [model, pixels])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ace", {"rounds": 0}),
        ("ace", {"train_steps": -1}),
        ("ace", {"rank": 0}),
        ("ace", {"latent_weight": -1.0}),
        ("hspace-kv", {"learning_rate": -1.0}),
        ("fsmg", {"train_steps": -1}),
        ("fsmg", {"prior_images": -1}),
        ("aspl", {"rounds": 0}),
        ("aspl", {"learning_rate": -1.0}),
        ("aspl", {"shape": "luma"}),
    ],
)
def test_settings_out_of_range_are_refused(name, settings):
    with pytest.raises(ValueError, match=r"at least|negative|shape none"):
        create(name, **settings)
