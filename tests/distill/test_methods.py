"""What the attack of each method maximises, and in which state it leaves the student."""

import dataclasses

import pytest
import torch
from torch import nn

from distill import losses, methods
from distill.averaging import Ema, WeightAverage
from distill.batchnorm import batchnorm, frozen
from distill.draws import Draws, generator_of
from distill.method import Method, Step

# not ProARD, which takes a network of its own: see test_dynamic.py
METHODS = [getattr(methods, name) for name in methods.__all__ if name != "ProArd"]
ATTACKED = [kind for kind in METHODS if kind.attacked]


def network(seed, classes=5):
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, classes)
    )
    made[1].running_mean.uniform_(-0.2, 0.2)
    return made


class Counted(nn.Module):
    """A network that remembers what it was asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.asked = network, []

    def forward(self, images):
        self.asked.append(images.detach().clone())
        return self.network(images)


def step_of(method, *, seed=0, **settings):
    generator = torch.Generator().manual_seed(7)
    student = network(0).train()
    return Step(
        student,
        torch.rand(4, 3, 8, 8, generator=generator),
        torch.tensor([0, 4, 2, 2]),
        Draws(generator_of(seed)),
        teachers={
            part: Counted(network(i + 1).eval().requires_grad_(False))
            for i, part in enumerate(method.teachers)
        },
        average=WeightAverage(network(5), Ema()),
        state=method.new_state(),
        **settings,
    )


def buffers(net):
    return {name: value.clone() for name, value in net.named_buffers()}


@pytest.mark.parametrize("kind", ATTACKED)
@pytest.mark.parametrize("mode", ["eval", "batch", "train"])
def test_an_attack_stays_in_its_ball_and_leaves_the_student_as_it_was(kind, mode):
    method = kind(batchnorm=mode, eps=8 / 255, step_size=2 / 255, steps=3)
    step = step_of(method)
    before = buffers(step.student)
    adversarial = method.perturb(step)
    assert not adversarial.requires_grad
    delta = adversarial - step.images
    assert 4 / 255 < delta.abs().max() <= 8 / 255 + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert all(parameter.grad is None and parameter.requires_grad for parameter in step.student.parameters())
    assert all(module.training for module in step.student.modules())
    same = all(torch.equal(value, before[name]) for name, value in buffers(step.student).items())
    assert same == (mode != "train")
    assert step.student[1].track_running_stats


@pytest.mark.parametrize("kind", ATTACKED)
def test_an_attack_raises_what_it_maximises(kind):
    method = kind(start="uniform", eps=8 / 255, step_size=2 / 255, steps=10)
    step = step_of(method)
    with batchnorm(step.student, "eval"), torch.no_grad():
        objective = method.objective(step)
        noise = step.images + 8 / 255 * Draws(generator_of(1)).uniform(step.images).sign()
        assert (objective(method.perturb(step)) > objective(noise.clamp(0, 1)) + 1e-6).all()


@pytest.mark.parametrize("kind", METHODS)
def test_terms_are_one_per_image_and_teach_the_student_alone(kind):
    method = kind(eps=8 / 255, step_size=2 / 255, steps=2)
    step = step_of(method, epoch=100, progress=0.5)
    terms = method.terms(step, method.perturb(step))
    assert all(values.shape == (4,) for values in terms.values())
    losses.total(terms).sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in step.student[0].parameters()
    )
    assert all(p.grad is None for teacher in step.teachers.values() for p in teacher.parameters())
    assert all(p.grad is None for p in step.average.parameters())


@pytest.mark.parametrize("kind", METHODS)
def test_a_step_depends_on_its_draws_alone(kind):
    method = kind()
    first, same, other = (method.perturb(step_of(method, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    draws = method.attacked or kind in (methods.Dad, methods.Hard)
    still = not draws or method.start == "clean"
    assert torch.equal(first, other) == still


def test_ards_teacher_sees_clean_images_once():
    method = methods.Ard(steps=3)
    step = step_of(method)
    method.terms(step, method.perturb(step))
    (asked,) = step.teachers["robust"].asked
    assert torch.equal(asked, step.images)


def test_rslad_asks_its_teacher_once_and_knows_no_labels():
    method = methods.Rslad(steps=3)
    step, other = step_of(method), step_of(method)
    other.labels = torch.tensor([1, 1, 1, 1])
    found = []
    for each in (step, other):
        adversarial = method.perturb(each)
        found.append((adversarial, losses.total(method.terms(each, adversarial))))
        (asked,) = each.teachers["robust"].asked
        assert torch.equal(asked, each.images)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_the_attack_of_ada_ad_follows_its_teacher_too():
    method = methods.AdaAd()
    step = step_of(method)
    teacher, student = step.teachers["robust"].double(), step.student.eval().double()
    images = step.images.double().requires_grad_()
    through = torch.autograd.grad(method.objective(step)(images).sum(), images)[0]
    blocked = torch.autograd.grad(losses.kl(teacher(images), student(images)).sum(), images)[0]
    assert not torch.allclose(through, blocked)
    nudge = torch.zeros_like(images)
    nudge[0, 1, 3, 3] = 1e-6
    with torch.no_grad():
        slope = (method.objective(step)(images + nudge) - method.objective(step)(images - nudge))[0] / 2e-6
    assert float(slope) == pytest.approx(float(through[0, 1, 3, 3]), rel=1e-3)


def alignment_of(student):
    """What GradAlign asks of a student in a ball of 0.1, the mean over images."""
    method = methods.GradAlign(eps=0.1, step_size=0.1, alignment=0.5)
    step = step_of(method)
    step.student, step.images = student, step.images.double()
    return method.terms(step, step.images)["alignment"].mean()


def test_grad_align_asks_nothing_of_a_loss_whose_gradient_never_turns():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    # of two classes the gradient is a multiple of one direction; of five it turns with the probabilities
    two = nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.ConstantPad1d((0, 3), -1e9)).double()
    two_labels = torch.tensor([0, 1, 1, 0])
    method = methods.GradAlign(eps=0.1, step_size=0.1)
    step = step_of(method)
    step.student, step.images, step.labels = two, step.images.double(), two_labels
    assert method.terms(step, step.images)["alignment"].abs().max() < 1e-12
    assert alignment_of(linear) > 1e-6


def test_grad_align_differentiates_the_gradient():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Softplus(), nn.Linear(6, 5)).double()
    weight = student[1].weight
    (slope,) = torch.autograd.grad(alignment_of(student), weight)
    place = divmod(int(slope.abs().argmax()), weight.shape[1])
    found = []
    for nudge in (1e-5, -2e-5):
        with torch.no_grad():
            weight[place] += nudge
        found.append(float(alignment_of(student).detach()))
    assert (found[0] - found[1]) / 2e-5 == pytest.approx(float(slope[place]), rel=1e-4)
    # the same, by hand, at the draws of the step
    draws = step_of(methods.GradAlign()).draws
    images = step_of(methods.GradAlign()).images.double()
    gradients = []
    for at in (images, images + 0.1 * draws.uniform(images)):
        at.requires_grad_()
        loss = torch.nn.functional.cross_entropy(student(at), torch.tensor([0, 4, 2, 2]), reduction="sum")
        gradients.append(torch.autograd.grad(loss, at)[0].flatten(1))
    cosine = torch.nn.functional.cosine_similarity(*gradients)
    assert found[1] == pytest.approx(float(0.5 * (1 - cosine).mean()))


def test_mtard_weighs_its_terms_by_what_it_has_seen():
    method = methods.Mtard(steps=2)
    step = step_of(method)
    adversarial = method.perturb(step)
    first = method.terms(step, adversarial)
    robust, natural = step.teachers["robust"], step.teachers["natural"]
    assert torch.equal(robust.asked[-1], adversarial)
    assert torch.equal(natural.asked[-1], step.images)
    plain = losses.kl(natural(step.images), step.clean) * 0.1
    torch.testing.assert_close(first["natural"], 0.5 * plain)
    step.state.first[1] /= 3  # as if the natural loss had begun at a third
    weighed = method.terms(dataclasses.replace(step), adversarial)
    weight = float((weighed["natural"] / plain).detach().mean())
    assert weight == pytest.approx(0.5 + 0.025 * (0.75 - 0.5), abs=1e-3)


def test_b_mtard_moves_temperatures_after_and_weights_before_the_loss():
    method = methods.BMtard(steps=2, temperature_rate=0.5)
    step = step_of(method)
    adversarial = method.perturb(step)
    terms = method.terms(step, adversarial)
    natural = step.clean_of("natural")
    torch.testing.assert_close(terms["natural"], 0.05 * losses.kl(natural, step.clean))
    uncertain = [
        losses.entropy(step.teachers["robust"].network(adversarial)).mean(),
        losses.entropy(natural).mean(),
    ]
    cooler = int(torch.stack(uncertain).argmax())
    expected = [1.5, 1.5]
    expected[cooler] = 1.0
    assert step.state["entropies"].temperatures.tolist() == expected


def test_adr_attacks_and_trains_on_one_label_that_anneals():
    method = methods.Adr(steps=2)
    begin, end = step_of(method, progress=0.0), step_of(method, progress=1.0)
    for step, temperature, confidence in ((begin, 2.5, 0.7), (end, 2.0, 0.95)):
        average = step.average(step.images)
        expected = losses.rectified(average, step.labels, temperature=temperature, confidence=confidence)
        torch.testing.assert_close(method.labels(step), expected)
        (values,) = method.terms(step, step.images).values()
        torch.testing.assert_close(values, losses.cross_entropy(step.clean, expected))


def test_iad_trusts_its_teacher_until_it_begins():
    method = methods.Iad(steps=2, begin=3)
    early, late = (step_of(method, epoch=epoch) for epoch in (2, 3))
    assert not method.terms(early, early.images + 0.01)["introspective"].any()
    assert method.terms(late, late.images + 0.01)["introspective"].all()


def test_ltd_replaces_labels_by_a_cool_natural_teacher():
    method = methods.Ltd(label_temperature=2.0)
    step = step_of(method)
    labels = (step.teachers["natural"](step.images) / 2).softmax(1)
    expected = -(labels * step.clean.log_softmax(1)).sum(1)
    torch.testing.assert_close(method.terms(step, step.images)["clean"], expected)


def test_defensive_distillation_takes_labels_at_the_temperature_of_the_teachers_training():
    step = step_of(methods.DefensiveDistillation())
    said = step.teachers["natural"](step.images)
    for method, labels in (
        (methods.DefensiveDistillation(temperature=40.0), (said / 40).softmax(1)),
        (methods.DefensiveDistillation(temperature=40.0, teacher_temperature=1.0), said.softmax(1)),
    ):
        expected = -40 * (labels * (step.clean / 40).log_softmax(1)).sum(1)
        torch.testing.assert_close(method.terms(step, step.images)["distilled"], expected)


def test_the_loss_of_a_tempered_teacher_has_the_slope_of_its_softer_prediction():
    step = step_of(methods.Natural())
    logits = step.clean.detach().requires_grad_()
    tempered = dataclasses.replace(step, student=lambda images: logits)
    loss = methods.Natural(temperature=100.0).terms(tempered, step.images)["clean"].sum()
    residual = (logits / 100).softmax(1) - nn.functional.one_hot(step.labels, logits.shape[1])
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], residual)


def test_a_mode_is_taken_back_though_the_attack_fails():
    net = network(0).train()
    net[1].eval()
    for mode in ("eval", "train", "batch"):
        with pytest.raises(RuntimeError, match="boom"), batchnorm(net, mode), frozen(net):
            raise RuntimeError("boom")
        assert net.training
        assert not net[1].training
        assert net[1].track_running_stats
        assert all(parameter.requires_grad for parameter in net.parameters())


def test_what_was_frozen_before_stays_frozen():
    net = network(0)
    net[0].weight.requires_grad_(False)
    with frozen(net):
        assert not any(parameter.requires_grad for parameter in net.parameters())
    assert [name for name, value in net.named_parameters() if not value.requires_grad] == ["0.weight"]


def test_draws_do_not_depend_on_the_split_over_processes():
    like = torch.zeros(6, 3, 2, 2)
    whole = Draws(generator_of(3)).uniform(like)
    for rank in range(2):
        part = Draws(generator_of(3), rank, 2).uniform(like[:3])
        assert torch.equal(part, whole[rank::2])
    assert whole.min() < -0.5
    assert whole.max() > 0.5
    assert len({float(value) for value in whole[:, 0, 0, 0]}) == 6  # an image's own draw


def test_a_start_outside_the_pixels_is_clipped_before_the_first_step():
    method = methods.PgdAt(steps=1, eps=8 / 255, step_size=1e-6)
    step = step_of(method)
    step.images = torch.zeros_like(step.images)
    adversarial = method.perturb(step)
    assert adversarial.min() == 0
    assert (adversarial == 0).float().mean() > 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 8}, "eps is a radius of images in .*such as 8/255.*got 8"),
        ({"eps": "8/0"}, "a number or a fraction such as 8/255; got '8/0'"),
        ({"eps": 2 / 255, "step_size": 8 / 255}, "are the two swapped"),
        ({"steps": 0}, "no attack of 0 steps"),
        ({"start": "random"}, "from a 'random' start"),
    ],
)
def test_settings_that_make_no_attack_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        methods.PgdAt(**settings)


def test_a_radius_may_be_written_as_a_fraction():
    assert methods.PgdAt(eps="8/255") == methods.PgdAt(eps=8 / 255)


def test_an_unknown_mode_is_named():
    with (
        pytest.raises(ValueError, match="'eval', 'train' or 'batch'; got 'test'"),
        batchnorm(network(0), "test"),
    ):
        pass


def test_every_method_is_final_and_says_what_it_needs():
    assert all(issubclass(kind, Method) and not kind.__subclasses__() for kind in METHODS)
    assert {kind.__name__: kind.teachers for kind in METHODS if len(kind.teachers) == 2} == {
        "Mtard": ("robust", "natural"),
        "BMtard": ("robust", "natural"),
        "IadTwo": ("robust", "natural"),
    }


def guard_of(student, images, labels, **settings):
    """What GUARD asks of a student for each image."""
    method = methods.Guard(std=(1.0, 1.0, 1.0), weight=1.0, **settings)
    step = step_of(method)
    step.student, step.images, step.labels = student, images, labels
    return method.terms(step, images)["curvature"]


class Bowl(nn.Module):
    """Two logits whose difference is quadratic in the image: a cross-entropy of known curvature."""

    def __init__(self, bend):
        super().__init__()
        self.bend = nn.Parameter(torch.tensor(bend, dtype=torch.float64))

    def forward(self, images):
        rise = self.bend / 2 * images.flatten(1).square().sum(1)
        # so wrong that the cross-entropy is the difference of the logits
        return torch.stack([-1e4 - rise, 0 * rise], 1)


def test_guard_is_the_distance_of_gradients_and_nothing_where_the_loss_is_linear():
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    labels = torch.zeros(4, dtype=torch.long)
    for bend in (0.5, 2.0):
        # the gradient of bend/2 |x|^2 is bend x; a step of h uphill moves it by bend h
        found = guard_of(Bowl(bend), images, labels, reach=0.25)
        torch.testing.assert_close(found, torch.full((4,), 0.25 * bend, dtype=torch.float64))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).double()
    with torch.no_grad():
        linear[1].bias.copy_(torch.tensor([-1e4, 0.0]))
    found = guard_of(linear, images, labels)
    assert found.max() < 1e-12
    found.sum().backward()
    assert torch.isfinite(linear[1].weight.grad).all()


def test_guards_regulariser_is_differentiated_and_leaves_batch_normalisation_alone():
    student, images = Bowl(1.5), torch.rand(2, 3, 4, 4).double()
    asked = guard_of(student, images, torch.tensor([0, 0]), reach=0.25).sum()
    (slope,) = torch.autograd.grad(asked, student.bend)
    assert float(slope) == pytest.approx(0.5)  # of bend times 0.25 for two images
    method = methods.Guard()
    step = step_of(method)
    step.clean  # noqa: B018  # what the loss on clean images moves
    before = buffers(step.student)
    method.terms(step, step.images)
    assert all(torch.equal(value, before[name]) for name, value in step.student.named_buffers())
    assert step.student.training


def test_soft_labels_are_the_teachers_of_the_same_mixed_images():
    method = methods.SoftLabels(temperature=3.0, mixup=0.4)
    step = step_of(method)
    term = method.terms(step, step.images)["distilled"]
    share = step_of(method).draws.beta(0.4)
    assert 0 < share < 1
    mixed = share * step.images + (1 - share) * step.images[[3, 0, 1, 2]]
    assert torch.equal(step.teachers["natural"].asked[0], mixed)
    with torch.no_grad():
        target = (step.teachers["natural"].network(mixed) / 3).softmax(1)
        expected = (target * (target.log() - (step_of(method).student(mixed) / 3).log_softmax(1))).sum(1)
    torch.testing.assert_close(term.detach(), 9 * expected)


def test_a_share_of_mixing_is_one_number_that_follows_its_distribution():
    drawn = torch.tensor([Draws(generator_of(0, seed)).beta(0.8) for seed in range(4000)])
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(drawn.var()) == pytest.approx(1 / (4 * 2.6), abs=0.005)
    assert Draws(generator_of(3), rank=1, world=2).beta(0.8) == Draws(generator_of(3)).beta(0.8)


def test_trades_softens_the_classes_alone():
    step = step_of(methods.Trades())
    plain = methods.Trades().terms(step, step.images)
    soft = methods.Trades(smoothing=0.1).terms(step, step.images)
    torch.testing.assert_close(soft["robust"], plain["robust"])
    expected = torch.nn.functional.cross_entropy(
        step.clean, step.labels, reduction="none", label_smoothing=0.1
    )
    torch.testing.assert_close(soft["clean"], expected)
    with pytest.raises(ValueError, match=r"a share in \[0, 1\)"):
        losses.smoothed(step.labels, 5, 1.0)


def test_dads_pictures_are_one_step_of_the_teachers_from_part_of_the_starts():
    step = step_of(methods.Dad())
    images, teacher = step.images.repeat(50, 1, 1, 1), step.teachers["robust"]
    labels = step.labels.repeat(50)
    step.images, step.labels = images, labels
    method = methods.Dad(radius=0.3, stride=0.05, random_start=0.8)
    hard = method.perturb(step)
    moved = (hard - images).flatten(1).norm(dim=1)
    assert moved.max() <= 0.3 + 1e-5
    # those that begin at the image are one stride away, in the direction of the teacher's gradient
    still = (moved - 0.05).abs() < 1e-4
    assert 0.1 < still.float().mean() < 0.3
    at = images.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(teacher.network(at), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, at)
    unit = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    inside = still & ((images + 0.05 * unit).clamp(0, 1) == images + 0.05 * unit).flatten(1).all(1)
    torch.testing.assert_close((hard - images)[inside], 0.05 * unit[inside], atol=1e-5, rtol=1e-3)
    assert torch.equal(step.student[0].weight, network(0)[0].weight)
    with pytest.raises(ValueError, match="random_start is a share"):
        methods.Dad(random_start=2)


def test_dad_follows_the_teacher_on_both_kinds_of_pictures_and_through_the_codec():
    class Coarse(nn.Module):
        def forward(self, images):
            return (images * 4).round() / 4

    method = methods.Dad(codec=Coarse(), weight=0.5, temperature=4.0)
    step = step_of(method)
    hard = method.perturb(step)
    assert torch.equal(hard, (hard * 4).round() / 4)
    terms = method.terms(step, hard)
    teacher, student = step.teachers["robust"].network, step_of(method).student
    clean, rounded = student(step.images), student(hard)

    def divergence(target, logits):
        p = (target / 4).softmax(1)
        return 0.5 * 16 * (p * (p.log() - (logits / 4).log_softmax(1))).sum(1)

    expected = torch.nn.functional.cross_entropy(clean, step.labels, reduction="none")
    torch.testing.assert_close(terms["clean"], expected)
    torch.testing.assert_close(terms["distilled"], divergence(teacher(step.images), clean))
    torch.testing.assert_close(terms["discrete"], divergence(teacher(hard), rounded), atol=1e-5, rtol=1e-4)
