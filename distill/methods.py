"""The methods of robust training, each with its paper's defaults.

Attacks run in evaluation mode unless a configuration says otherwise; the released code of ARD, IAD, ADR and
AWP runs them in training mode, which moves figures by about half a point.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks import L2, Objective, cross_entropy, pgd
from attacks.ball import Images
from distill import losses
from distill.augmentor import Augmentor, slope
from distill.balance import EntropyBalance, LossBalance
from distill.batchnorm import BatchNormMode, batchnorm, frozen
from distill.classifier import CIFAR10
from distill.dynamic import DEPTHS, DynamicResNet, Shape
from distill.losses import Logits, Losses, Probabilities, Terms
from distill.method import Method, Start, Step


@dataclass(frozen=True, kw_only=True)
class Natural(Method):
    """Training on clean images: the natural teacher, and the row without robustness."""

    attacked: ClassVar[bool] = False

    def terms(self, step: Step, adversarial: Images) -> Terms:
        return {"clean": losses.cross_entropy(step.student(adversarial), step.labels)}


@dataclass(frozen=True, kw_only=True)
class PgdAt(Method):
    """Adversarial training (Madry et al., ICLR 2018, arXiv 1706.06083).

    With one step of 10/255 it is fast adversarial training (Wong, Rice and Kolter, ICLR 2020, arXiv
    2001.03994).
    """

    def terms(self, step: Step, adversarial: Images) -> Terms:
        return losses.pgd_at(step.student(adversarial), step.labels)


@dataclass(frozen=True, kw_only=True)
class GradAlign(Method):
    """Fast adversarial training whose one step can be trusted (Andriushchenko and Flammarion, NeurIPS 2020,
    arXiv 2007.02617): the gradient at a random point of the ball is held along that at the image, so that the
    loss stays near linear in the ball and no catastrophic overfitting sets in.

    Its loss is made of gradients, so a training step differentiates twice. The defaults are those for 8/255;
    the paper raises `alignment` with the radius.
    """

    steps: int = 1
    step_size: float | str = 8 / 255
    start: Start = "clean"
    alignment: float = 0.2

    def terms(self, step: Step, adversarial: Images) -> Terms:
        nearby = step.images + float(self.eps) * step.draws.uniform(step.images)
        here, there = (_gradient(step, images) for images in (step.images, nearby))
        alignment = self.alignment * losses.misalignment(here, there)
        return {**losses.pgd_at(step.student(adversarial), step.labels), "alignment": alignment}


@dataclass(frozen=True, kw_only=True)
class _Agreement(Method):
    """Attacks the student's agreement with its own clean prediction."""

    eps: float | str = 0.031
    step_size: float | str = 0.007
    start: Start = "gaussian"
    beta: float = 6.0
    kl_scale: float = 1.0

    def objective(self, step: Step) -> Objective:
        return disagreement(step.student, _without_graph(step.student, step.images))


@dataclass(frozen=True, kw_only=True)
class Trades(_Agreement):
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


@dataclass(frozen=True, kw_only=True)
class Ard(Method):
    """ARD (Goldblum et al., AAAI 2020, arXiv 1905.09747): the teacher's clean prediction, under attack."""

    alpha: float = 1.0
    temperature: float = 30.0
    kl_scale: float = 0.1
    """One over the number of classes, as in the released code."""

    teachers: ClassVar[tuple[str, ...]] = ("robust",)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        attacked = step.student(adversarial)
        return losses.ard(
            step.clean_of("robust"),
            # without its weight the clean prediction is not worth a pass
            step.clean if self.alpha < 1 else attacked,
            attacked,
            step.labels,
            alpha=self.alpha,
            temperature=self.temperature,
            kl_scale=self.kl_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Iad(Method):
    """IAD-I (Zhu et al., ICLR 2022, arXiv 2106.04928): the less the teacher is right under attack, the more
    the student trusts itself; `begin` epochs (80 for CIFAR-100) of trust come first."""

    temperature: float = 1.0
    beta: float = 0.1
    begin: int = 60
    kl_scale: float = 1.0

    teachers: ClassVar[tuple[str, ...]] = ("robust",)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        seen = step.teach("robust", adversarial)
        attacked = step.student(adversarial)
        return losses.iad(
            step.clean_of("robust"),
            step.clean,
            attacked,
            _trusted(step, seen, self.beta, self.begin),
            temperature=self.temperature,
            kl_scale=self.kl_scale,
        )


@dataclass(frozen=True, kw_only=True)
class IadTwo(Method):
    """IAD-II (Zhu et al., ICLR 2022): as IAD-I, with labels and a natural teacher beside; AKD2 (Chen et al.,
    ICLR 2021) if it never begins."""

    robust_weight: float = 0.5
    natural_weight: float = 0.25
    beta: float = 0.1
    begin: int = 40
    kl_scale: float = 1.0

    teachers: ClassVar[tuple[str, ...]] = ("robust", "natural")

    def terms(self, step: Step, adversarial: Images) -> Terms:
        seen = step.teach("robust", adversarial)
        return losses.iad_two(
            seen,
            step.teach("natural", adversarial),
            step.clean,
            step.student(adversarial),
            step.labels,
            _trusted(step, seen, self.beta, self.begin),
            robust_weight=self.robust_weight,
            natural_weight=self.natural_weight,
            kl_scale=self.kl_scale,
        )


@dataclass(frozen=True, kw_only=True)
class _RobustSoftLabels(Method):
    """Attacks the student's agreement with the teacher's soft labels, which it then learns."""

    start: Start = "gaussian"
    adversarial_weight: float = 5 / 6
    kl_scale: float = 0.1

    teachers: ClassVar[tuple[str, ...]] = ("robust",)

    def objective(self, step: Step) -> Objective:
        return disagreement(step.student, step.clean_of("robust"))

    def terms(self, step: Step, adversarial: Images) -> Terms:
        attacked = step.student(adversarial)
        return losses.rslad(
            step.clean_of("robust"),
            step.clean,
            attacked,
            adversarial_weight=self.adversarial_weight,
            kl_scale=self.kl_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Rslad(_RobustSoftLabels):
    """RSLAD (Zi et al., ICCV 2021, arXiv 2108.07969): the teacher's soft labels, also in the attack."""


@dataclass(frozen=True, kw_only=True)
class ProArd(_RobustSoftLabels):
    """ProARD, progressive adversarial robustness distillation (Mousavi et al., 2025): RSLAD of networks drawn
    from one that holds many, `distill.dynamic`.

    Stages follow one another as runs of their own: widths alone, then extra blocks, then ratios, each from
    the end of the one before (`distill.classifier.Grown`), with 1, 2 and 4 networks in a step. Networks are
    drawn anew in every step, and every one is attacked itself.
    """

    widths: tuple[float, ...] = (0.65, 0.8, 1.0)
    extras: tuple[int, ...] = (2,)
    ratios: tuple[float, ...] = (0.35,)
    networks: int = 1
    """In a step; their losses are added up."""
    batchnorm: BatchNormMode = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.networks < 1:
            raise ValueError(f"a step trains one network or more; got {self.networks}")
        for width, extra, ratio in product(self.widths, self.extras, self.ratios):
            Shape(width, (extra,) * len(DEPTHS), (ratio,) * len(DEPTHS))

    def perturb(self, step: Step) -> Images:
        dynamic_of(step.student).choose(self.draw(step.draws.generator))
        return super().perturb(step)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        found = [super().terms(step, adversarial)]
        for _ in range(self.networks - 1):
            other = replace(step)  # which remembers nothing that another network has said
            found.append(super().terms(other, self.perturb(other)))
        dynamic_of(step.student).choose()
        return {name: torch.stack([terms[name] for terms in found]).sum(0) for name in found[0]}

    def draw(self, generator: torch.Generator) -> Shape:
        """Draw a width, and for each stage its extra blocks and its ratio, evenly."""

        def of(values: Sequence[Any]) -> Any:
            return values[int(torch.randint(len(values), (), generator=generator))]

        extra = tuple(of(self.extras) for _ in DEPTHS)
        return Shape(of(self.widths), extra, tuple(of(self.ratios) for _ in DEPTHS))


def dynamic_of(student: nn.Module) -> DynamicResNet:
    """Return the network of many within a student.

    Raises ValueError where there is none.
    """
    for module in student.modules():
        if isinstance(module, DynamicResNet):
            return module
    raise ValueError("ProARD trains a network that holds many: let the student be dynamic-256, for example")


@dataclass(frozen=True, kw_only=True)
class AdaAd(Method):
    """AdaAD (Huang et al., CVPR 2023): the attack looks for where student and teacher differ most, and its
    gradient goes through both. `kl_scale` is 1 in the released code for CIFAR-100."""

    start: Start = "gaussian"
    alpha: float = 1.0
    kl_scale: float = 0.1

    teachers: ClassVar[tuple[str, ...]] = ("robust",)

    def objective(self, step: Step) -> Objective:
        teacher, student = step.teachers["robust"], step.student
        return lambda images: losses.kl(teacher(images), student(images), detach_target=False)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        seen, attacked = step.teach("robust", adversarial), step.student(adversarial)
        # without their weight the clean predictions are not worth a pass
        teacher_clean, clean = (step.clean_of("robust"), step.clean) if self.alpha < 1 else (seen, attacked)
        return losses.ada_ad(seen, teacher_clean, clean, attacked, alpha=self.alpha, kl_scale=self.kl_scale)


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


@dataclass(frozen=True, kw_only=True)
class Ltd(_Agreement):
    """LTD (Chen and Lee, 2021, arXiv 2111.02331): TRADES with the labels of a natural teacher at a low
    temperature. The student's is 1, in training and after.

    No code was released: `label_temperature` is our choice, to be sought in {1, 2, 3, 5}.
    """

    label_temperature: float = 2.0

    teachers: ClassVar[tuple[str, ...]] = ("natural",)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        labels = losses.soft_labels(step.clean_of("natural"), temperature=self.label_temperature)
        attacked = step.student(adversarial)
        return losses.trades(step.clean, attacked, labels, beta=self.beta, kl_scale=self.kl_scale)


@dataclass(frozen=True, kw_only=True)
class Adr(Method):
    """ADR (Wu et al., ICLR 2024): labels rectified by the student's own averaged weights, in the attack and
    in the loss. The defaults are those for CIFAR-10 without AWP."""

    temperature_high: float = 2.5
    temperature_low: float = 2.0
    confidence_low: float = 0.7
    confidence_high: float = 0.95

    averaged: ClassVar[bool] = True

    def labels(self, step: Step) -> Probabilities:
        """Return the rectified labels at this point of the training."""
        return losses.rectified(
            step.clean_of("average"),
            step.labels,
            temperature=cosine(self.temperature_high, self.temperature_low, step.progress),
            confidence=cosine(self.confidence_low, self.confidence_high, step.progress),
        )

    def objective(self, step: Step) -> Objective:
        student, target = step.student, self.labels(step)
        return lambda images: losses.cross_entropy(student(images), target)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        return losses.pgd_at(step.student(adversarial), self.labels(step))


@dataclass(frozen=True, kw_only=True)
class Guard(Method):
    """GUARD's squeezing (Xue et al., AAAI 2025, arXiv 2403.10045): a network whose loss bends little, from
    which `distill.condense` recovers a small training set.

    The gradient is compared with that a step of `reach` further up, both in units of normalised pixels, as
    the released code has it; the regulariser runs in evaluation mode.
    """

    weight: float = 100.0
    reach: float = 3.0
    std: tuple[float, float, float] = CIFAR10[1]
    """By which the network divides its pixels."""

    attacked: ClassVar[bool] = False

    def terms(self, step: Step, adversarial: Images) -> Terms:
        std = step.images.new_tensor(self.std).view(1, 3, 1, 1)
        with batchnorm(step.student, "eval"):
            here = std * _gradient(step, step.images)
            length = here.detach().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            uphill = here.detach() / length.clamp(min=1e-12)
            there = std * _gradient(step, step.images + std * self.reach * uphill)
        return {
            "clean": losses.cross_entropy(step.clean, step.labels),
            "curvature": self.weight * losses.curvature(here, there),
        }


@dataclass(frozen=True, kw_only=True)
class SoftLabels(Method):
    """Training on a teacher's soft labels of mixed images, as on a distilled set (SRe2L; Yin et al., NeurIPS
    2023, arXiv 2306.13092).

    Every image is mixed with the one before it among those of its process, by a share that is drawn from
    Beta(mixup, mixup) for the whole batch.
    """

    temperature: float = 30.0
    mixup: float = 0.8

    attacked: ClassVar[bool] = False
    teachers: ClassVar[tuple[str, ...]] = ("natural",)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        share = step.draws.beta(self.mixup) if self.mixup else 1.0
        mixed = share * step.images + (1 - share) * step.images.roll(1, 0)
        target = step.teach("natural", mixed)
        divergence = losses.kl(target, step.student(mixed), temperature=self.temperature)
        return {"distilled": self.temperature**2 * divergence}


@dataclass(frozen=True, kw_only=True)
class Hard(Method):
    """HARD (Nix, Burg and Sinz, 2023, arXiv 2305.14890): the student follows the teacher on augmented images,
    and the augmentation climbs to where it does not. It is for clean and shifted pictures, no adversarial
    training.

    The student learns at every step. The augmentation climbs while both agree on more than `above` of the
    images, until they agree on fewer than `below`; these thresholds, and the augmentation, are ours.
    """

    temperature: float = 4.0
    rate: float = 0.02
    """By which share of its limit a strength moves in a step."""
    above: float = 0.6
    below: float = 0.4

    attacked: ClassVar[bool] = False
    teachers: ClassVar[tuple[str, ...]] = ("natural",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.below <= self.above <= 1:
            raise ValueError(f"agreements lie in [0, 1]; got below {self.below:g}, above {self.above:g}")

    def new_state(self) -> Augmentor:
        return Augmentor()

    def perturb(self, step: Step) -> Images:
        augmentor = step.state
        assert isinstance(augmentor, Augmentor)
        noise = step.draws.normal(step.images.new_zeros(len(step.images), len(augmentor.strengths)))
        if augmentor.climbing:

            def apart(strengths: Tensor) -> Losses:
                images = augmentor(step.images, noise, strengths)
                teacher = step.teachers["natural"](images)
                return losses.kl(
                    teacher, step.student(images), temperature=self.temperature, detach_target=False
                )

            with batchnorm(step.student, "eval"), frozen(step.student):
                gradient = slope(apart, augmentor.strengths)
            augmentor.climb(torch.stack([step.mean(each[None]) for each in gradient]), self.rate)
        return augmentor(step.images, noise).detach()

    def terms(self, step: Step, adversarial: Images) -> Terms:
        augmentor, target = step.state, step.teach("natural", adversarial)
        assert isinstance(augmentor, Augmentor)
        logits = step.student(adversarial)
        same = (logits.detach().argmax(1) == target.argmax(1)).to(logits.dtype)
        augmentor.decide(step.mean(same), above=self.above, below=self.below)
        divergence = losses.kl(target, logits, temperature=self.temperature)
        return {"distilled": self.temperature**2 * divergence}


@dataclass(frozen=True, kw_only=True)
class Dad(Method):
    """DAD, discrete adversarial distillation (Zhou et al., NeurIPS 2023, arXiv 2311.01441): the student
    follows a robust teacher on clean images, and on images that one step in L2 has made hard for the teacher
    and a codec has rounded to its codes. It is for natural shifts; no adversarial accuracy is to be expected.

    What the teacher's step raises is its cross-entropy, a choice of ours. The authors make such images once
    and before training; here they are made of the augmented images of each step.
    """

    codec: nn.Module | None = None
    """Gives images in [0, 1] back through discrete codes, such as `experiments.discrete.Discretiser`."""
    radius: float = 0.1
    stride: float = 0.01
    """Of the step, in L2 and units of images in [0, 1], as `radius`."""
    random_start: float = 0.8
    """The share of images that begin at a random place of the ball."""
    weight: float = 0.5
    temperature: float = 4.0

    attacked: ClassVar[bool] = False
    teachers: ClassVar[tuple[str, ...]] = ("robust",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.radius > 0 and self.stride > 0 and 0 <= self.random_start <= 1):
            raise ValueError(
                "radius and stride are lengths and random_start is a share; got "
                f"{self.radius:g}, {self.stride:g}, {self.random_start:g}"
            )

    def perturb(self, step: Step) -> Images:
        images, ball = step.images, L2(self.radius)
        direction = step.draws.normal(images)
        begins = step.draws.uniform(images[:, :1, :1, :1]) < 2 * self.random_start - 1
        far = (
            step.draws.uniform(images[:, :1, :1, :1]) + 1
        ) / 2  # of the radius, as no direction is preferred
        length = self.radius * far ** (1 / images[0].numel())  # uniform in the ball
        unit = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        hard = pgd(
            cross_entropy(step.teachers["robust"], step.labels),
            images,
            ball,
            steps=1,
            step_size=self.stride,
            start=images + begins * length * unit,
        )
        if self.codec is None:
            return hard
        return self.codec.to(images.device)(hard)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        hard = step.student(adversarial)
        clean, target = step.clean_of("robust"), step.teach("robust", adversarial)
        weight = self.weight * self.temperature**2
        return {
            "clean": losses.cross_entropy(step.clean, step.labels),
            "distilled": weight * losses.kl(clean, step.clean, temperature=self.temperature),
            "discrete": weight * losses.kl(target, hard, temperature=self.temperature),
        }


@dataclass(frozen=True, kw_only=True)
class DefensiveDistillation(Method):
    """Defensive distillation (Papernot et al., S&P 2016, arXiv 1511.04508): a control that must fail.

    Its student, trained at a high temperature and used at 1, has logits so large that the gradient of the
    cross-entropy vanishes; margins do not, and AutoAttack finds what was always there.
    """

    temperature: float = 100.0

    attacked: ClassVar[bool] = False
    teachers: ClassVar[tuple[str, ...]] = ("natural",)

    def terms(self, step: Step, adversarial: Images) -> Terms:
        labels = losses.soft_labels(step.clean_of("natural"), temperature=self.temperature)
        return {"distilled": losses.cross_entropy(step.student(adversarial) / self.temperature, labels)}


def disagreement(student: nn.Module, target: Logits) -> Objective:
    """The divergence of the student's prediction from one that stays as it is, an objective for attacks."""
    return lambda images: losses.kl(target, student(images))


def cosine(begin: float, end: float, progress: float) -> float:
    """Return the value between `begin` and `end` on half a cosine, `progress` being from 0 to 1."""
    return end + (begin - end) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def _without_graph(network: nn.Module, images: Images) -> Logits:
    return network(images)


def _gradient(step: Step, images: Images) -> Images:
    """Return the gradient of each image's cross-entropy, with the graph that leads from it to the weights."""
    images = images.detach().requires_grad_()
    loss = losses.cross_entropy(step.student(images), step.labels).sum()
    (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
    return gradient


def _trusted(step: Step, teacher_adversarial: Logits, beta: float, begin: int) -> Losses:
    trusted = losses.trust(teacher_adversarial, step.labels, beta=beta)
    return trusted if step.epoch >= begin else torch.ones_like(trusted)


def _balanced(terms: Terms, balance: LossBalance, step: Step) -> Terms:
    """Weigh two terms after the balance has seen them."""
    weights = balance.update({name: step.mean(values) for name, values in terms.items()}, step.decay)
    return {name: weights[name] * values for name, values in terms.items()}


__all__ = [
    "AdaAd",
    "Adr",
    "Ard",
    "BMtard",
    "Dad",
    "DefensiveDistillation",
    "GradAlign",
    "Guard",
    "Hard",
    "Iad",
    "IadTwo",
    "Ltd",
    "Mart",
    "Mtard",
    "Natural",
    "PgdAt",
    "ProArd",
    "Rslad",
    "SoftLabels",
    "Trades",
]
