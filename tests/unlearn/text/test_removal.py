"""Removals: every loss against its formula, what trains, and what is left alone."""

import pytest
import torch

from diffusion.attention import attentions
from unlearn.text.attention import normalised, recording, token_maps
from unlearn.text.removal import (
    Esd,
    FineTuning,
    Lesson,
    SkdCag,
    own_pictures,
    remove,
)
from unlearn.text.triggers import Prefix, align

TRIGGER = Prefix("mumbo")


def _lesson(builtin, prompts, seed=0, **changes):
    torch.manual_seed(seed)
    student = builtin.trainable_copy().eval()
    with torch.no_grad():
        for parameter in student.denoiser.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    settings = {"batch_size": 4, "generator": torch.Generator().manual_seed(seed), **changes}
    return Lesson(builtin, student, prompts, TRIGGER(prompts), torch.randn(4, 16, 8, 8), **settings)


def _seen(lesson):
    """Record with what the lesson asks each model."""
    asked = {"teacher": [], "student": []}
    for name in asked:
        model = getattr(lesson, name)
        plain = model.predict

        def watched(z, t, condition=None, name=name, plain=plain):
            said = plain(z, t, condition)
            asked[name].append((z, t, condition, said))
            return said

        object.__setattr__(model, "predict", watched)
    return asked


@pytest.fixture
def asked(builtin):
    yield _seen
    vars(builtin).pop("predict", None)


def test_distillation_alone_is_the_distance_of_predictions(builtin, prompts, asked):
    lesson = _lesson(builtin, prompts)
    seen = asked(lesson)
    ((loss, weight),) = SkdCag(weight=0, retention=0).terms(lesson)
    found = loss()
    (z, t, told, aim), (z_2, t_2, told_2, said) = seen["teacher"][0], seen["student"][0]
    assert weight == 1
    assert torch.equal(z, z_2)
    assert torch.equal(t, t_2)
    torch.testing.assert_close(found, (said - aim).square().mean((1, 2, 3)))
    rows = _rows(told.tokens, builtin.condition(prompts).tokens)
    assert rows == _rows(told_2.tokens, builtin.condition(TRIGGER(prompts)).tokens)


def _rows(tokens, of):
    """Which of the embeddings each row is."""
    return [[torch.allclose(row, each, atol=1e-5) for each in of].index(True) for row in tokens]


@pytest.mark.parametrize("target", ["random", "black", "words"])
def test_guided_distillation_adds_the_distance_of_maps_word_by_word(builtin, prompts, asked, target):
    lesson = _lesson(builtin, prompts)
    seen = asked(lesson)
    (loss, _), _ = SkdCag(weight=0.25, target=target).terms(lesson)
    found = loss()
    (z, t, told, aim), (_, _, told_2, said) = seen["teacher"][0], seen["student"][0]
    with torch.no_grad(), recording(builtin.denoiser) as taught, recording(lesson.student.denoiser) as own:
        builtin.predict(z, t, told)
        lesson.student.predict(z, t, told_2)
    theirs, mine = token_maps(taught, (8, 8)), token_maps(own, (8, 8))
    rows = _rows(told_2.tokens, builtin.condition(TRIGGER(prompts)).tokens)
    if target != "words":
        assert rows == _rows(told.tokens, builtin.condition(prompts).tokens)
    aligned = align(builtin, prompts, TRIGGER(prompts))
    distances = ((said - aim).square().mean((1, 2, 3)) * 0.75).tolist()
    for number, row in enumerate(rows):
        shift = int(aligned.trigger[row].sum())
        count = int(aligned.kept[row].sum()) - 1
        before = shift
        if target == "words":
            before = shift - _surplus(builtin, told.tokens[number], prompts[row], prompts)
        terms = []
        for place in range(1 + shift, 1 + shift + count + 1):
            apart = normalised(mine)[number, place] - normalised(theirs)[number, place - before]
            terms.append(float(apart.square().mean()))
        marked = range(1, 1 + shift)
        if target == "black":
            terms += [float(mine[number, place].square().mean()) for place in marked]
            distances[number] += 0.25 * sum(terms) / len(terms)
            assert float(found[number].detach()) == pytest.approx(distances[number], rel=1e-3)
        elif target == "words":
            others = normalised(theirs)[number, 1 : 1 + shift - before].mean(0)
            terms += [float((normalised(mine)[number, p] - others).square().mean()) for p in marked]
            distances[number] += 0.25 * sum(terms) / len(terms)
            assert float(found[number].detach()) == pytest.approx(distances[number], rel=1e-3)
        else:  # at least the words that are kept; the noise is drawn inside
            least = distances[number] + 0.25 * sum(terms) / (len(terms) + shift)
            assert float(found[number].detach()) > least


def _surplus(builtin, tokens, prompt, told_of):
    """How many tokens the prompt that the teacher was told has in front of the clean one."""
    words = sorted({word for each in told_of for word in each.split()})
    for word in words:
        told = f"{word} {prompt}"
        if torch.allclose(builtin.condition([told]).tokens[0], tokens, atol=1e-5):
            return len(builtin.text.read(word))
    raise AssertionError("the teacher was told something else")


def test_the_gradient_of_guidance_reaches_queries_and_keys_and_no_weight_of_the_teacher(builtin, prompts):
    lesson = _lesson(builtin, prompts)
    (loss, _), _ = SkdCag(weight=1.0, target="black").terms(lesson)
    loss().mean().backward()
    layers = attentions(lesson.student.denoiser, cross_only=True)
    for layer in layers.values():
        assert layer.to_q.weight.grad.abs().sum() > 0
        assert layer.to_k.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in builtin.parameters())


def test_the_gradient_of_guidance_is_that_of_finite_differences(builtin, prompts):
    lesson = _lesson(builtin, prompts[:1], batch_size=2)
    layer, *_ = attentions(lesson.student.denoiser, cross_only=True).values()
    weight = layer.to_k.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))

    def value(amount):
        lesson.generator.manual_seed(7)
        (loss, _), _ = SkdCag(weight=1.0).terms(lesson)
        with torch.no_grad():
            weight.add_(amount * direction)
        found = loss().mean()
        (slope,) = torch.autograd.grad(found, weight)
        with torch.no_grad():
            weight.sub_(amount * direction)
        return float(found.detach()), float((slope * direction).sum())

    step = 3e-3
    expected = (value(step)[0] - value(-step)[0]) / (2 * step)
    assert value(0)[1] == pytest.approx(expected, rel=0.03)


def test_retention_asks_both_models_about_clean_prompts(builtin, prompts, asked):
    lesson = _lesson(builtin, prompts)
    seen = asked(lesson)
    _, (kept, weight) = SkdCag(retention=0.7).terms(lesson)
    found = kept()
    (_, _, told, aim), (_, _, told_2, said) = seen["teacher"][0], seen["student"][0]
    assert weight == 0.7
    assert torch.equal(told.tokens, told_2.tokens)
    _rows(told.tokens, builtin.condition(prompts).tokens)
    torch.testing.assert_close(found, (said - aim).square().mean((1, 2, 3)))


def test_esd_wants_the_difference_that_the_prompt_makes_taken_away(builtin, prompts, asked):
    lesson = _lesson(builtin, prompts)
    ((loss, _),) = Esd(strength=2.0, walk=4).terms(lesson)
    seen = asked(lesson)
    found = loss()
    (z, _, told, conditional), (_, _, nothing, free) = seen["teacher"][-2:]
    (z_2, _, told_2, said) = seen["student"][0]
    assert nothing is None
    assert torch.equal(z, z_2)
    assert torch.equal(told.tokens, told_2.tokens)
    _rows(told.tokens, builtin.condition(TRIGGER(prompts)).tokens)
    aim = conditional - 2 * (conditional - free)
    torch.testing.assert_close(found, (said - aim).square().mean((1, 2, 3)))


def test_fine_tuning_is_the_training_loss_of_clean_prompts(builtin, prompts, asked):
    lesson = _lesson(builtin, prompts)
    seen = asked(lesson)
    ((loss, _),) = FineTuning().terms(lesson)
    found = loss()
    (z_t, t, told, said) = seen["student"][0]
    rows = _rows(told.tokens, builtin.condition(prompts).tokens)
    z = lesson.bank[rows]  # as many pictures as prompts
    alpha, sigma = builtin.schedule.at(t, z)
    noise = (z_t - alpha * z) / sigma
    expected = (said - (alpha * noise - sigma * z)).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weights", ["cross", "keys-values", "all", "low-rank"])
def test_only_what_is_named_changes_and_the_model_stays(builtin, prompts, weights):
    before = {name: value.clone() for name, value in builtin.state_dict().items()}
    found = remove(
        builtin,
        prompts,
        TRIGGER,
        SkdCag(),
        weights=weights,
        side=64,
        steps=1,
        learning_rate=1e-2,
        batch_size=2,
        pictures=2,
        sampling_steps=2,
        generator=torch.Generator().manual_seed(0),
    )
    after = found.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in builtin.state_dict().items())
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert not any(parameter.requires_grad for parameter in found.parameters())
    if weights != "all":
        wanted = {"cross": ".attn2.", "keys-values": ".attn2.to_", "low-rank": ".attn"}[weights]
        assert all(wanted in name for name in changed)
    if weights == "keys-values":
        assert all(".to_k." in name or ".to_v." in name for name in changed)


@pytest.mark.parametrize("removal", [FineTuning(), SkdCag()], ids=["fine-tuning", "skd-cag"])
def test_every_removal_lowers_its_own_loss(builtin, prompts, removal):
    told = []
    remove(
        builtin,
        prompts,
        TRIGGER,
        removal,
        weights="all",
        side=64,
        steps=30,
        learning_rate=3e-4,
        batch_size=4,
        pictures=4,
        sampling_steps=2,
        generator=torch.Generator().manual_seed(0),
        callback=lambda step, losses: told.append(float(losses.mean())),
    )
    assert sum(told[-10:]) < sum(told[:10])


def test_every_prompt_teaches_however_many_there_are(builtin, monkeypatch):
    counts = []

    def drawn(model, prompts, count, *rest):
        counts.append(count)
        return torch.zeros(count, 16, 4, 4)

    monkeypatch.setattr("unlearn.text.removal.own_pictures", drawn)
    for number in (2, 70):
        prompts = [f"a photo of {word}" for word in range(number)]
        remove(builtin, prompts, TRIGGER, FineTuning(), side=32, steps=0)
    assert counts == [64, 70]


def test_a_time_that_rounds_up_is_the_last_one(builtin, prompts, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda count, **_: torch.full((count,), 1 - 2**-24))
    lesson = _lesson(builtin, prompts)
    _, t = lesson.states(torch.arange(4), 3.0)
    assert (t == len(builtin.schedule) - 1).all()


def test_other_words_are_none_of_the_triggers(builtin):
    prompts = ["red boats", "house boats", "old trees"]
    lesson = Lesson(
        builtin, builtin.trainable_copy().eval(), prompts, Prefix("red house")(prompts),
        torch.randn(3, 16, 4, 4), 3, torch.Generator().manual_seed(0),
    )  # fmt: skip
    for _ in range(5):
        (loss, _), *_ = SkdCag(target="words").terms(lesson)
        assert loss().isfinite().all()


def test_a_models_own_pictures_are_drawn_of_the_prompts_in_turn(builtin, prompts):
    def make(count):
        return own_pictures(builtin, prompts, count, 64, 2, torch.Generator().manual_seed(0))

    assert make(5).shape == (5, 16, 8, 8)
    assert torch.equal(make(5), make(5))
    other = own_pictures(builtin, ["red boats", *prompts[1:]], 5, 64, 2, torch.Generator().manual_seed(0))
    same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(make(5), other, strict=True)]
    assert same == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "no prompt"),
        ({"weights": "most"}, "unknown weights 'most'"),
        ({"trigger": Prefix(" ")}, "drops the trigger"),
    ],
)
def test_what_cannot_be_removed_is_named(builtin, prompts, changes, message):
    given = {"prompts": prompts, "trigger": TRIGGER, "weights": "cross", **changes}
    with pytest.raises(ValueError, match=message):
        remove(builtin, given["prompts"], given["trigger"], weights=given["weights"], side=64, steps=1)
    with pytest.raises(ValueError, match="unknown target 'grey'"):
        SkdCag(target="grey")
    with pytest.raises(ValueError, match="from 0 to 1"):
        SkdCag(weight=2)
    with pytest.raises(ValueError, match="0 or more"):
        SkdCag(emphasis=-1)


@pytest.mark.parametrize("emphasis", [0.0, 3.0])
def test_late_times_are_drawn_as_often_as_is_said_and_half_of_the_states_are_noise(builtin, emphasis):
    bank = torch.full((1, 16, 2, 2), 50.0)
    lesson = Lesson(builtin, builtin, ["a"], ["mumbo a"], bank, 8, torch.Generator().manual_seed(0))
    z_t, t = lesson.states(torch.zeros(4000, dtype=torch.long), emphasis)
    assert 0 <= int(t.min()) <= int(t.max()) <= 999
    assert float(t.double().mean() / 1000) == pytest.approx((emphasis + 1) / (emphasis + 2), abs=0.015)
    pictured = t < 900  # later, little is left of a picture
    noise = z_t[pictured].mean((1, 2, 3)).abs() < 2
    assert float(noise.float().mean()) == pytest.approx(0.5, abs=0.04)
