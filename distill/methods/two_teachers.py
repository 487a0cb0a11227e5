"""A robust and a natural teacher in balance: MTARD and B-MTARD."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from attacks.ball import Images
from distill import losses
from distill.balance import EntropyBalance, LossBalance
from distill.losses import Terms
from distill.method import Method, Start, Step


@dataclass(frozen=True, kw_only=True)
class Mtard(Method):
    """MTARD (Zhao et al., ECCV 2022): a robust teacher for adversarial images, a natural one for clean ones;
    the slower-learning term gains weight."""

    start: Start = "gaussian"
    kl_scale: float = 0.1
    weight_rate: float = 0.025

    teachers: ClassVar[tuple[str, ...]] = ("robust", "natural")

    def new_state(self) -> nn.Module:
        return LossBalance(self.weight_rate)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        terms = losses.two_teachers(
            step.teach("robust", adversarial),
            step.clean_of("natural"),
            step.clean,
            step.student(adversarial),
            kl_scale=self.kl_scale,
        )
        assert isinstance(step.state, LossBalance)
        return _balanced(terms, step.state, step)


@dataclass(frozen=True, kw_only=True)
class BMtard(Method):
    """B-MTARD (Zhao et al., TPAMI 2024, arXiv 2306.16170): MTARD whose teachers are made equally uncertain.

    `temperature_rate` is per step for 300 epochs of 391 steps; a run of fewer needs more of it, or the
    temperatures never get anywhere.
    """

    start: Start = "gaussian"
    kl_scale: float = 0.1
    weight_rate: float = 0.025
    temperature_rate: float = 0.001
    highest_temperature: float = 10.0

    teachers: ClassVar[tuple[str, ...]] = ("robust", "natural")

    def new_state(self) -> nn.Module:
        entropies = EntropyBalance(self.temperature_rate, highest=self.highest_temperature)
        return nn.ModuleDict({"losses": LossBalance(self.weight_rate), "entropies": entropies})

    def terms(self, step: Step, adversarial: Images) -> Terms:
        assert isinstance(step.state, nn.ModuleDict)
        balance, warmth = step.state["losses"], step.state["entropies"]
        assert isinstance(balance, LossBalance)
        assert isinstance(warmth, EntropyBalance)
        robust, natural = step.teach("robust", adversarial), step.clean_of("natural")
        terms = losses.two_teachers(
            robust,
            natural,
            step.clean,
            step.student(adversarial),
            robust_temperature=warmth.robust,
            natural_temperature=warmth.natural,
            kl_scale=self.kl_scale,
        )
        warmth.update(
            step.mean(losses.entropy(robust, warmth.robust)),
            step.mean(losses.entropy(natural, warmth.natural)),
            step.decay,
        )
        return _balanced(terms, balance, step)


def _balanced(terms: Terms, balance: LossBalance, step: Step) -> Terms:
    """Weigh two terms after the balance has seen them."""
    weights = balance.update({name: step.mean(values) for name, values in terms.items()}, step.decay)
    return {name: weights[name] * values for name, values in terms.items()}
