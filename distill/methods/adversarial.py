"""Adversarial training without a teacher: PGD-AT, TRADES, MART, and natural training beside them."""

from dataclasses import dataclass
from typing import ClassVar

from attacks.ball import Images
from distill import losses
from distill.losses import Terms
from distill.method import Method, Start, Step
from distill.methods.agreement import Agreement


@dataclass(frozen=True, kw_only=True)
class Natural(Method):
    """Training on clean images: the natural teacher, and the row without robustness.

    A teacher of defensive distillation is trained at a `temperature`; the loss is multiplied by it, so that a
    learning rate means what it does elsewhere.
    """

    temperature: float = 1.0

    attacked: ClassVar[bool] = False

    def terms(self, step: Step, adversarial: Images) -> Terms:
        logits = step.student(adversarial) / self.temperature
        return {"clean": self.temperature * losses.cross_entropy(logits, step.labels)}


@dataclass(frozen=True, kw_only=True)
class PgdAt(Method):
    """Adversarial training (Madry et al., ICLR 2018, arXiv 1706.06083).

    With one step of 10/255 it is fast adversarial training (Wong, Rice and Kolter, ICLR 2020, arXiv
    2001.03994).
    """

    def terms(self, step: Step, adversarial: Images) -> Terms:
        return losses.pgd_at(step.student(adversarial), step.labels)


@dataclass(frozen=True, kw_only=True)
class Trades(Agreement):
    """TRADES (Zhang et al., ICML 2019, arXiv 1901.08573): cross-entropy, and agreement with itself.

    With `smoothing` the classes of the cross-entropy are softened by so much of a uniform distribution.
    """

    detach_target: bool = False
    smoothing: float = 0.0

    def terms(self, step: Step, adversarial: Images) -> Terms:
        target = step.labels
        if self.smoothing:
            target = losses.smoothed(step.labels, step.clean.shape[1], self.smoothing)
        return losses.trades(
            step.clean,
            step.student(adversarial),
            target,
            beta=self.beta,
            kl_scale=self.kl_scale,
            detach_target=self.detach_target,
        )


@dataclass(frozen=True, kw_only=True)
class Mart(Method):
    """MART (Wang et al., ICLR 2020): more weight on what is misclassified without an attack."""

    eps: float | str = 0.031
    step_size: float | str = 0.007
    start: Start = "gaussian"
    weight: float = 5.0
    kl_scale: float = 1.0

    def terms(self, step: Step, adversarial: Images) -> Terms:
        attacked = step.student(adversarial)
        return losses.mart(step.clean, attacked, step.labels, weight=self.weight, kl_scale=self.kl_scale)
