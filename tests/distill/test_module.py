"""Training at toy size: what is saved, resumed, refused, averaged, perturbed and watched."""

import math

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from attacks import NonFiniteError
from distill import methods
from distill.averaging import Ema, Swa
from distill.awp import Awp
from distill.classifier import Classifier
from distill.data import LabelledImages
from distill.module import RobustTraining
from distill.overfitting import CollapseGuard
from distill.schedules import Cyclic, Piecewise

# Lightning talks through warnings (few workers, small batches); none of them is about our code.
pytestmark = pytest.mark.filterwarnings("default")

TEACHERS = {"robust": 11, "natural": 12}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ninety-six pictures of 16 pixels in three classes that a small network can tell apart."""
    drawn = np.random.default_rng(0)
    labels = np.arange(96) % 3
    coarse = drawn.integers(60, 196, (3, 4, 4, 3))[labels].repeat(4, 1).repeat(4, 2)
    images = (coarse + drawn.normal(0, 20, coarse.shape)).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "toy.npz"
    np.savez(path, images=images, labels=labels)
    return path


def network(seed, classes=3, norm=True):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes))


def module(method, *, student=None, **options):
    given = {part: network(seed) for part, seed in TEACHERS.items() if part in method.teachers}
    if method.averaged:
        options.setdefault("average", Ema(decay=0.9))
    return RobustTraining(
        student or network(0), method, **{"learning_rate": 0.05, "schedule": Cyclic(), **given, **options}
    )


def fit(training, pictures, folder, *, epochs=2, ckpt_path=None, data=None, callbacks=(), **trainer):
    made = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        callbacks=[
            ModelCheckpoint(folder, "best", monitor="val_robust", mode="max"),
            ModelCheckpoint(folder, "last"),
            *callbacks,
        ],
        **trainer,
    )
    made.fit(
        training,
        datamodule=LabelledImages(str(pictures), 16, held_out=32, **(data or {})),
        ckpt_path=ckpt_path,
    )
    return made


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


STATEFUL = [
    methods.Trades(steps=2),
    methods.Mtard(steps=2, weight_rate=0.3),
    methods.BMtard(steps=2, weight_rate=0.3, temperature_rate=0.1),
    methods.Adr(steps=2),
    methods.Iad(steps=2, begin=3),
    methods.PgdAt(steps=1),
]


@pytest.mark.parametrize("method", STATEFUL, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("step", [8, 10], ids=["between epochs", "within one"])
def test_a_resumed_run_is_the_run_that_it_resumes(method, step, pictures, tmp_path):
    """An epoch has four steps; the run is picked up from what it left behind on its way."""
    awp = Awp() if isinstance(method, methods.PgdAt | methods.Adr) else None

    def training(seed=0):
        options = {"average": Ema(decay=0.9), "schedule": Piecewise((1, 3)), "seed": seed, "awp": awp}
        return module(method, guard=CollapseGuard(drop=0.99), **options)

    left = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1)
    unbroken, resumed, other = training(), training(), training(seed=1)
    fit(unbroken, pictures, tmp_path / "unbroken", epochs=4, callbacks=[left])
    fit(resumed, pictures, tmp_path / "rest", epochs=4, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert same(resumed.state_dict(), unbroken.state_dict())
    # which is not so because nothing was learned, or drawn
    fit(other, pictures, tmp_path / "other", epochs=4, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert not same(other.state_dict(), unbroken.state_dict())


def test_training_teaches_and_the_best_and_the_last_are_kept(pictures, tmp_path):
    training = module(methods.PgdAt(steps=3, eps="4/255"), learning_rate=0.1, validation_eps="2/255")
    made = fit(training, pictures, tmp_path, epochs=10, data={"augment": False})
    assert made.callback_metrics["val_clean"] > 0.9
    assert 0.5 < made.callback_metrics["val_robust"] <= made.callback_metrics["val_clean"]
    assert (tmp_path / "best.ckpt").exists()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 9


def test_no_teacher_is_saved_trained_or_in_training_mode(pictures, tmp_path):
    training = module(methods.Mtard(steps=1))
    before = {part: network(seed).state_dict() for part, seed in TEACHERS.items()}
    fit(training, pictures, tmp_path, epochs=1)
    assert not any(name.startswith("teachers") for name in training.state_dict())
    for part, teacher in training.teachers.items():
        assert same(teacher.state_dict(), before[part])
        assert not any(each.training for each in teacher.modules())


def test_the_average_is_what_is_validated(pictures, tmp_path):
    training = module(methods.PgdAt(steps=1), average=Swa())
    assert training.judged is training.average.network
    fit(training, pictures, tmp_path, epochs=1)
    assert not torch.equal(training.average.network[0].weight, training.student[0].weight)
    # sixteen pictures a batch, sixty-four of them: four steps
    assert int(training.average.updates) == 4


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_loss_is_that_of_the_perturbed_weights_and_the_step_starts_from_them(
    pictures, tmp_path, precision
):
    """AWP against the loop that its paper describes, for one step of plain SGD."""
    options = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": Piecewise((9,))}
    seen = {}

    class Watched(methods.PgdAt):
        def terms(self, step, adversarial):
            seen.setdefault("calls", []).append(adversarial)
            seen["labels"] = step.labels
            return super().terms(step, adversarial)

    training = module(Watched(steps=2), awp=Awp(gamma=0.05), **options)
    fit(training, pictures, tmp_path, epochs=1, max_steps=1, precision=precision, limit_val_batches=0)
    first, second = seen["calls"]
    assert torch.equal(first, second)

    net = network(0)
    kinds = (nn.Conv2d, nn.Linear)
    weights = [each.weight for each in net.modules() if isinstance(each, kinds)]
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")

    def loss():
        with cast:
            return nn.functional.cross_entropy(net(first), seen["labels"])

    gradients = torch.autograd.grad(loss(), weights)
    change = [0.05 * g * w.detach().norm() / g.norm() for g, w in zip(gradients, weights, strict=True)]
    start = {name: value.clone() for name, value in net.named_parameters()}
    with torch.no_grad():
        for weight, each in zip(weights, change, strict=True):
            weight += each
    loss().backward()
    for name, parameter in net.named_parameters():
        expected = start[name] - 0.1 * parameter.grad
        torch.testing.assert_close(
            training.student.get_parameter(name).detach(), expected, atol=2e-6, rtol=1e-4
        )


def test_perturbing_weights_touches_running_statistics_once(pictures, tmp_path):
    training = module(methods.Trades(steps=2), awp=Awp())
    fit(training, pictures, tmp_path, epochs=1, max_steps=1, limit_val_batches=0)
    assert int(training.student[1].num_batches_tracked) == 2  # clean and adversarial, for the loss


def test_a_collapse_stops_the_run_with_the_weights_of_before(pictures, tmp_path):
    training = module(methods.PgdAt(steps=1), guard=CollapseGuard(drop=0.2))
    epochs = iter([0.5, 0.6, 0.1])
    kept = {}

    def robust(net, images, labels, steps):
        share = next(epochs) if steps == 5 else 0.5
        if share == 0.6:
            kept.update({name: value.clone() for name, value in training.student.state_dict().items()})
        return torch.arange(len(labels)) < share * len(labels)

    training._robust = robust
    with pytest.warns(
        UserWarning, match=r"catastrophic overfitting in epoch 2: .* fell from 56 % to 6 %|62 %"
    ):
        made = fit(training, pictures, tmp_path, epochs=6)
    assert made.current_epoch == 3
    assert same(training.student.state_dict(), kept)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(pictures, tmp_path):
    class Broken(methods.Trades):
        def terms(self, step, adversarial):
            terms = dict(super().terms(step, adversarial))
            return terms if step.progress == 0 else {**terms, "robust": terms["robust"] * math.nan}

    training = module(Broken(steps=1))
    with pytest.raises(
        NonFiniteError, match=r"the loss is not finite at step 1: robust; lower the learning rate"
    ):
        fit(training, pictures, tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RobustTraining(network(0), methods.Mtard(), robust=network(1)),
            "Mtard needs a natural teacher",
        ),
        (lambda: RobustTraining(network(0), methods.Adr()), "Adr needs averaged weights"),
        (lambda: module(methods.Mtard(), awp=Awp()), "AWP looks at the loss twice"),
        (lambda: module(methods.PgdAt(), validation_eps=8), "eps is a radius of images"),
        (lambda: module(methods.Ard(), robust=network(1, classes=7)), "3 classes; the robust teacher has 7"),
        (lambda: module(methods.PgdAt(), student=network(0, classes=4)), "3 classes; the student has 4"),
        (
            lambda: module(methods.PgdAt(), student=nn.Sequential(network(0), nn.Softmax(1))),
            "the student returns probabilities",
        ),
        (
            lambda: module(methods.PgdAt(), student=nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))),
            "the student does not take pictures of 16x16 pixels",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_is(pictures, tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        fit(make(), pictures, tmp_path, epochs=1)


def test_a_run_without_an_end_is_refused(pictures, tmp_path):
    with pytest.raises(ValueError, match="a schedule needs an end"):
        fit(module(methods.PgdAt()), pictures, tmp_path, epochs=-1)


def test_weights_perturbed_for_one_step_cannot_serve_several(pictures, tmp_path):
    with pytest.raises(ValueError, match="accumulate_grad_batches must be 1"):
        fit(module(methods.PgdAt(), awp=Awp()), pictures, tmp_path, accumulate_grad_batches=2)


def test_a_checkpoint_says_which_network_it_holds(pictures, tmp_path):
    student = Classifier("resnet8", classes=3)
    fit(module(methods.PgdAt(steps=1), student=student), pictures, tmp_path, epochs=1, limit_train_batches=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["classifier"] == student.config


def test_gradients_can_be_clipped_and_batches_be_bfloat16(pictures, tmp_path):
    training = module(methods.BMtard(steps=2))
    made = fit(training, pictures, tmp_path, epochs=1, gradient_clip_val=1.0, precision="bf16-mixed")
    assert torch.isfinite(made.callback_metrics["val_robust"])
    assert training.state["entropies"].temperatures.dtype == torch.float32
