"""Robust training of a classifier with Lightning: bookkeeping, and no mathematics."""

from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from attacks import Linf, NonFiniteError, cross_entropy, pgd
from distill.averaging import Ema, Swa, WeightAverage
from distill.awp import Awp, add, perturbation, perturbed_weights
from distill.balance import NAMES
from distill.batchnorm import batchnorm, frozen
from distill.classifier import Classifier, recalibrated
from distill.data import LabelledImages
from distill.draws import Draws, generator_of
from distill.images import Labels, Pixels, to_unit
from distill.losses import Losses, Terms, total
from distill.method import Images, Method, Step, check_radius, length
from distill.overfitting import CollapseGuard
from distill.schedules import Piecewise, Schedule

Batch = tuple[Pixels | Images, Labels]


class RobustTraining(L.LightningModule):
    """Train a student by a method, with the teachers that it asks for.

    What a step draws depends on the seed and its number alone, so a resumed run is the run that it resumes,
    and one on several processes that on one with the same whole batch (but for batch normalisation, which
    sees the images of its own process; `sync_batchnorm` is the trainer's).

    Args:
        student: classifier of images in [0, 1] that returns logits.
        method: what to maximise and minimise, from `distill.methods`.
        robust: the robust teacher, a frozen classifier of images in [0, 1].
        natural: the natural teacher.
        learning_rate: the highest, which the schedule multiplies; of SGD, as the settings that follow.
        average: whether to average the weights; the average is then what is validated and exported.
        awp: whether to perturb the weights.
        guard: watches for catastrophic overfitting.
        validation_eps: radius of the attack on held-out images, of `validation_steps` steps.
        seed: of the attacks' starts.
    """

    def __init__(
        self,
        student: nn.Module,
        method: Method,
        robust: nn.Module | None = None,
        natural: nn.Module | None = None,
        learning_rate: float = 0.1,
        schedule: Schedule = Piecewise(),  # noqa: B008
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 5e-4,
        average: Ema | Swa | None = None,
        awp: Awp | None = None,
        guard: CollapseGuard | None = None,
        validation_eps: float | str = "8/255",
        validation_steps: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        given = {"robust": robust, "natural": natural}
        # not submodules: neither trained nor part of the checkpoint, and always in evaluation mode
        self.teachers: dict[str, nn.Module] = {}
        for part in method.teachers:
            teacher = given[part]
            if teacher is None:
                raise ValueError(f"{type(method).__name__} needs a {part} teacher: set model.{part}")
            self.teachers[part] = teacher.eval().requires_grad_(False)
        if method.averaged and average is None:
            raise ValueError(f"{type(method).__name__} needs averaged weights: set model.average")
        self.student, self.method, self.state = student, method, method.new_state()
        if awp is not None and list(self.state.buffers()):
            raise ValueError(f"AWP looks at the loss twice, which {type(method).__name__} would count twice")
        self.average = None if average is None else WeightAverage(student, average)
        self.schedule, self.awp, self.guard = schedule, awp, guard
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.momentum, self.nesterov = momentum, nesterov
        self.validation_eps, self.validation_steps = length(validation_eps), validation_steps
        check_radius(self.validation_eps)
        self.seed = seed
        self._perturbed: dict[str, Tensor] = {}
        self._last: Batch | None = None
        self._before: dict[str, Tensor] | None = None
        self._counts = torch.zeros(3)

    @property
    def judged(self) -> nn.Module:
        """What is validated and exported: the averaged weights if there are any."""
        return self.student if self.average is None else self.average.network

    # ---- training

    def on_fit_start(self) -> None:
        if self.awp is not None and self.trainer.accumulate_grad_batches > 1:
            raise ValueError("AWP perturbs the weights of one step: accumulate_grad_batches must be 1")
        for teacher in self.teachers.values():
            teacher.to(self.device).eval()
        given = getattr(self.trainer, "datamodule", None)
        if isinstance(given, LabelledImages):
            pictures = given.training
            check_classes(self.student, self.teachers, pictures.pixels[:2].to(self.device), pictures.classes)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        step = self._step(batch)
        adversarial = self.method.perturb(step)
        if self.awp is not None and self.current_epoch >= self.awp.from_epoch:
            self._perturb_weights(step, adversarial, self.awp.gamma)
        terms = self.method.terms(step, adversarial)
        loss = total(terms).mean()
        if not torch.isfinite(loss):
            raise NonFiniteError(describe(terms, self.global_step))
        values = {f"loss_{name}": value.detach().mean() for name, value in terms.items()}
        values |= {name: value.clone() for name, value in self._state_log().items()}
        self.log_dict(values, on_epoch=True, on_step=False, batch_size=len(step.images), sync_dist=True)
        self.log("loss", loss, prog_bar=True, batch_size=len(step.images))
        self._last = batch
        return loss

    def _step(self, batch: Batch) -> Step:
        images, labels = batch
        draws = Draws(
            generator_of(self.seed, self.global_step), self.trainer.global_rank, self.trainer.world_size
        )
        return Step(
            self.student,
            to_unit(images) if images.dtype == torch.uint8 else images,
            labels,
            draws,
            teachers=self.teachers,
            average=self.average,
            state=self.state,
            epoch=self.current_epoch,
            progress=min(1.0, self.global_step / self._total_steps()),
            decay=self._decay(self.global_step),
            mean=lambda losses: self._mean(losses.detach().mean()),
        )

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        return self.trainer.strategy.reduce(value, reduce_op="mean")

    def _perturb_weights(self, step: Step, adversarial: Images, gamma: float) -> None:
        """Move the weights to the worst nearby, until the optimiser has stepped."""
        weights = perturbed_weights(self.student)
        with batchnorm(self.student, "batch"):
            # another step, which remembers nothing that the student said
            loss = total(self.method.terms(replace(step), adversarial)).mean()
            self._perturbed = perturbation(loss, weights, gamma, mean=self._mean)
        add(weights, self._perturbed)
        # under autocast, copies of the weights as they were are about
        torch.clear_autocast_cache()

    def _restore_weights(self) -> None:
        add(perturbed_weights(self.student), self._perturbed, sign=-1)
        self._perturbed = {}

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        # here and not when the batch ends, which is after checkpoints are written
        self._restore_weights()
        if self.average is not None:
            self.average.update(self.student, self.current_epoch)

    def on_exception(self, exception: BaseException) -> None:
        self._restore_weights()

    def on_train_epoch_end(self) -> None:
        if self.guard is None or self._last is None:
            return
        images, labels = self._last
        right = self._robust(self.student, to_unit(images), labels, self.guard.steps)
        accuracy = self._mean(right.float().mean())
        self.log("guard_robust", accuracy)
        if self.guard.collapsed(accuracy):
            self._collapse(float(accuracy))
        elif self.guard.restore:
            self._before = {name: value.clone() for name, value in self.state_dict().items()}

    def _collapse(self, accuracy: float) -> None:
        assert self.guard is not None
        restored = self.guard.restore and self._before is not None
        message = (
            f"catastrophic overfitting in epoch {self.current_epoch}: robust accuracy on training images "
            f"fell from {100 * float(self.guard.before):.0f} % to {100 * accuracy:.0f} %; training stops"
        )
        if restored and self._before is not None:
            self.load_state_dict(self._before)
            message += " with the weights of the epoch before"
        rank_zero_warn(message)
        self.trainer.should_stop = True

    def _state_log(self) -> dict[str, Tensor]:
        """What the method has changed so far: weights and temperatures of two teachers, strengths."""
        found: dict[str, Tensor] = {}
        for name, value in self.state.named_buffers():
            short = name.split(".")[-1]
            if value.ndim == 0:
                found[short] = value.float()
            elif short != "first":
                parts = NAMES if len(value) == len(NAMES) else range(len(value))
                found |= {f"{short}_{part}": each for part, each in zip(parts, value, strict=True)}
        return found

    # ---- validation, on held-out training images

    def on_validation_epoch_start(self) -> None:
        if self._last is not None:
            recalibrated(self.judged, [to_unit(self._last[0])])
        self._counts = torch.zeros(3, device=self.device)

    def validation_step(self, batch: Batch, index: int) -> None:
        # Lightning validates in inference mode, under which nothing can be attacked
        with torch.inference_mode(False):
            images, labels = to_unit(batch[0].clone()), batch[1].clone()
            with batchnorm(self.judged, "eval"):
                with torch.no_grad():
                    clean = self.judged(images).argmax(1) == labels
                robust = self._robust(self.judged, images, labels, self.validation_steps)
            found = [clean.sum(), (clean & robust).sum(), len(labels)]
        self._counts += torch.tensor([int(each) for each in found], device=self.device)

    def on_validation_epoch_end(self) -> None:
        clean, robust, count = self.trainer.strategy.reduce(self._counts, reduce_op="sum")
        self.log("val_clean", clean / count, prog_bar=True)
        self.log("val_robust", robust / count, prog_bar=True)

    def _robust(self, network: nn.Module, images: Images, labels: Labels, steps: int) -> Tensor:
        """Which images are classified right after an attack from a random start."""
        ball, size = Linf(self.validation_eps), 2.5 * self.validation_eps / steps
        with batchnorm(network, "eval"), frozen(network):
            attacked = pgd(
                cross_entropy(network, labels),
                images,
                ball,
                steps=steps,
                step_size=min(self.validation_eps, size),
                random_start=True,
                generator=generator_of(self.seed, 0),
            )
            with torch.no_grad():
                return network(attacked).argmax(1) == labels

    # ---- optimiser and checkpoints

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        return max(1, int(steps))

    def _decay(self, step: int) -> float:
        steps = self._total_steps()
        epochs = self.trainer.max_epochs or 0
        loader = self.trainer.num_training_batches
        known = isinstance(loader, int) and loader > 0
        per_epoch = loader if known else -(-steps // max(1, epochs))
        return self.schedule(step, int(per_epoch), steps)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if isinstance(self.student, Classifier):
            checkpoint["classifier"] = self.student.config
        # for students with dropout; everything else draws by its step
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        torch.set_rng_state(checkpoint["random_state"].cpu())


def check_classes(student: nn.Module, teachers: dict[str, nn.Module], pixels: Pixels, classes: int) -> None:
    """Raise ValueError if a network does not take the pictures, or knows other classes than they have."""
    named = {f"{part} teacher": network for part, network in teachers.items()}
    for name, network in {"student": student, **named}.items():
        with batchnorm(network, "eval"), torch.no_grad():
            try:
                logits = network(to_unit(pixels))
            except RuntimeError as error:
                size = "x".join(map(str, pixels.shape[2:]))
                raise ValueError(f"the {name} does not take pictures of {size} pixels: {error}") from error
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise ValueError(f"the data has {classes} classes; the {name} has {logits.shape[-1]}")
        sums = logits.float().sum(1)
        if logits.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            raise ValueError(f"the {name} returns probabilities; losses and attacks need its logits")


def describe(terms: Terms, step: int) -> str:
    """Say which terms of a loss are not finite."""
    broken = [name for name, values in terms.items() if not _finite(values)]
    return (
        f"the loss is not finite at step {step}: {', '.join(broken)}; lower the learning rate, clip "
        "gradients (trainer.gradient_clip_val), or train in 32-true"
    )


def _finite(values: Losses) -> bool:
    return bool(torch.isfinite(values).all())
