"""Losses of adversarial training and robustness distillation: pure functions of logits.

Each returns its terms by name, weighted, one value per image; `total` adds them up. In every divergence
KL(P || Q) the first argument is the target, and the gradient goes through it only where `detach_target` is
False. `kl_scale` multiplies divergences: released code that averages over images *and* classes has it at one
over the number of classes. Everything is computed in float32 or wider.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from attacks.ball import Images

Logits = Float[Tensor, "batch classes"]
Probabilities = Float[Tensor, "batch classes"]
Labels = Int[Tensor, " batch"]
Losses = Float[Tensor, " batch"]
Terms = Mapping[str, Losses]


def total(terms: Terms) -> Losses:
    """Return the loss of each image: the sum of its terms."""
    return torch.stack(list(terms.values())).sum(0)


def cross_entropy(logits: Logits, target: Labels | Probabilities) -> Losses:
    """Return the cross-entropy with classes or with soft labels, whose gradient is not followed."""
    return F.cross_entropy(_wide(logits), target.detach(), reduction="none")


def smoothed(labels: Labels, classes: int, smoothing: float) -> Probabilities:
    """Return classes as probabilities, with a share of `smoothing` spread evenly over all of them.

    Raises ValueError for a share outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing is a share in [0, 1); got {smoothing:g}")
    return (1 - smoothing) * F.one_hot(labels, classes).float() + smoothing / classes


def kl(
    target: Logits,
    logits: Logits,
    *,
    temperature: float = 1.0,
    target_temperature: float | Tensor | None = None,
    detach_target: bool = True,
) -> Losses:
    """Return KL(softmax(target / temperature) || softmax(logits / temperature)) of each image.

    `target_temperature` is the target's where it has one of its own.
    """
    warmth = temperature if target_temperature is None else target_temperature
    log_p = (_wide(target.detach() if detach_target else target) / warmth).log_softmax(1)
    log_q = (_wide(logits) / temperature).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def entropy(logits: Logits, temperature: float | Tensor = 1.0) -> Losses:
    """Return the entropy of softmax(logits / temperature), with the 1e-5 that B-MTARD's code adds inside the
    logarithm."""
    p = (_wide(logits) / temperature).softmax(1)
    return -(p * (p + 1e-5).log()).sum(1)


def pgd_at(adversarial: Logits, target: Labels | Probabilities) -> Terms:
    """Return the loss of adversarial training (Madry et al., ICLR 2018, arXiv 1706.06083)."""
    return {"adversarial": cross_entropy(adversarial, target)}


def trades(
    clean: Logits,
    adversarial: Logits,
    target: Labels | Probabilities,
    *,
    beta: float = 6.0,
    kl_scale: float = 1.0,
    detach_target: bool = False,
) -> Terms:
    """Return the loss of TRADES (Zhang et al., ICML 2019, arXiv 1901.08573).

    The clean prediction is a target that learns, too: detaching it costs points of robust accuracy.
    """
    divergence = kl(clean, adversarial, detach_target=detach_target)
    return {"clean": cross_entropy(clean, target), "robust": beta * kl_scale * divergence}


def curvature(here: Images, there: Images) -> Losses:
    """Return how far the gradient moves on the way, by its length for each image: GUARD's regulariser (Xue
    et al., AAAI 2025, arXiv 2403.10045). It is 0 where the loss is linear."""
    return (there - here).flatten(1).norm(dim=1)


def mart(
    clean: Logits, adversarial: Logits, labels: Labels, *, weight: float = 5.0, kl_scale: float = 1.0
) -> Terms:
    """Return the loss of MART (Wang et al., ICLR 2020): boosted cross-entropy, and a divergence that counts
    where the clean prediction is wrong. `weight` is 5 in the released script; nothing is detached."""
    wrong = _wide(adversarial).softmax(1).scatter(1, labels[:, None], 0.0).amax(1)
    boosted = cross_entropy(adversarial, labels) - (1.0001 - wrong + 1e-12).log()
    doubt = 1.0000001 - _true(clean, labels)
    divergence = kl(clean, adversarial, detach_target=False)
    return {"boosted": boosted, "misclassified": weight * kl_scale * divergence * doubt}


def ard(
    teacher_clean: Logits,
    clean: Logits,
    adversarial: Logits,
    labels: Labels,
    *,
    alpha: float = 1.0,
    temperature: float = 30.0,
    kl_scale: float = 1.0,
) -> Terms:
    """Return the loss of ARD (Goldblum et al., AAAI 2020, arXiv 1905.09747).

    The teacher sees the clean image, the student the adversarial one. The square of the temperature is part
    of it, so that with `kl_scale` one over the number of classes it is that of the released code.
    """
    divergence = kl(teacher_clean, adversarial, temperature=temperature)
    terms = {"distilled": alpha * temperature**2 * kl_scale * divergence}
    return terms if alpha == 1 else {**terms, "clean": (1 - alpha) * cross_entropy(clean, labels)}


def distilled(
    teacher: Logits, student: Logits, labels: Labels, *, share: float = 0.5, temperature: float = 10.0
) -> Losses:
    """Return the loss of a student on variations of a poisoned set (Struppek et al., 2023, arXiv 2310.06372).

    It is `share` times temperature^2 times the divergence from the softened teacher, plus 1 - `share` times
    the cross-entropy to labels, which for marked pictures are wrong: the teacher, who sees no trigger in a
    variation, outvotes them. The released code takes the cross-entropy of logits that were divided by the
    temperature, which leaves next to nothing of the labels; here they are not.
    """
    apart = kl(teacher, student, temperature=temperature)
    return share * temperature**2 * apart + (1 - share) * cross_entropy(student, labels)


def trust(teacher_adversarial: Logits, labels: Labels, *, beta: float = 0.1) -> Losses:
    """Return IAD's trust in the teacher: its probability of the true class on the adversarial image, to the
    power of `beta`."""
    return _true(teacher_adversarial.detach(), labels) ** beta


def iad(
    teacher_clean: Logits,
    clean: Logits,
    adversarial: Logits,
    trusted: Losses,
    *,
    temperature: float = 1.0,
    kl_scale: float = 1.0,
) -> Terms:
    """Return the loss of IAD-I (Zhu et al., ICLR 2022, arXiv 2106.04928), as released.

    The paper also multiplies the first term by the trust. `trusted` is `trust`, or ones while warming up;
    the student's own clean prediction is a target that learns.
    """
    taught = temperature**2 * kl_scale * kl(teacher_clean, adversarial, temperature=temperature)
    own = (1 - trusted) * kl_scale * kl(clean, adversarial, detach_target=False)
    return {"distilled": taught, "introspective": own}


def iad_two(
    robust_adversarial: Logits,
    natural_adversarial: Logits,
    clean: Logits,
    adversarial: Logits,
    labels: Labels,
    trusted: Losses,
    *,
    robust_weight: float = 0.5,
    natural_weight: float = 0.25,
    kl_scale: float = 1.0,
) -> Terms:
    """Return the loss of IAD-II (Zhu et al., ICLR 2022); with `trusted` ones it is AKD2 (Chen et al., ICLR
    2021). Both teachers see the adversarial image."""
    taught = trusted * kl(robust_adversarial, adversarial)
    own = (1 - trusted) * kl(clean, adversarial, detach_target=False)
    label_weight = 1 - robust_weight - natural_weight
    return {
        "label": label_weight * cross_entropy(adversarial, labels),
        "distilled": robust_weight * kl_scale * taught,
        "introspective": robust_weight * kl_scale * own,
        "natural": natural_weight * kl_scale * kl(natural_adversarial, adversarial),
    }


def rslad(
    teacher_clean: Logits,
    clean: Logits,
    adversarial: Logits,
    *,
    adversarial_weight: float = 5 / 6,
    kl_scale: float = 0.1,
) -> Terms:
    """Return the loss of RSLAD (Zi et al., ICCV 2021, arXiv 2108.07969): no hard label anywhere."""
    return {
        "robust": adversarial_weight * kl_scale * kl(teacher_clean, adversarial),
        "clean": (1 - adversarial_weight) * kl_scale * kl(teacher_clean, clean),
    }


def ada_ad(
    teacher_adversarial: Logits,
    teacher_clean: Logits,
    clean: Logits,
    adversarial: Logits,
    *,
    alpha: float = 1.0,
    kl_scale: float = 0.1,
) -> Terms:
    """Return the loss of AdaAD (Huang et al., CVPR 2023), whose teacher sees the adversarial image."""
    terms = {"robust": alpha * kl_scale * kl(teacher_adversarial, adversarial)}
    return terms if alpha == 1 else {**terms, "clean": (1 - alpha) * kl_scale * kl(teacher_clean, clean)}


def two_teachers(
    robust_adversarial: Logits,
    natural_clean: Logits,
    clean: Logits,
    adversarial: Logits,
    *,
    robust_temperature: float | Tensor = 1.0,
    natural_temperature: float | Tensor = 1.0,
    kl_scale: float = 0.1,
) -> Terms:
    """Return the two terms of MTARD (Zhao et al., ECCV 2022), not yet weighted; with temperatures of the
    teachers, those of B-MTARD (Zhao et al., TPAMI 2024, arXiv 2306.16170). The student's stays 1."""
    robust = kl(robust_adversarial, adversarial, target_temperature=robust_temperature)
    natural = kl(natural_clean, clean, target_temperature=natural_temperature)
    return {"robust": kl_scale * robust, "natural": kl_scale * natural}


def rectified(
    average_clean: Logits, labels: Labels, *, temperature: float, confidence: float
) -> Probabilities:
    """Return the soft labels of ADR (Wu et al., ICLR 2024): the averaged model's prediction where it is
    right, and the less of it the more its best class beats the true one."""
    p = (_wide(average_clean.detach()) / temperature).softmax(1)
    gap = p.amax(1) - p.gather(1, labels[:, None]).squeeze(1)
    share = (confidence - gap).clamp(0, 1)[:, None]
    return share * p + (1 - share) * F.one_hot(labels, p.shape[1]).to(p)


def misalignment(here: Images, there: Images) -> Losses:
    """Return 1 - cosine of the angle between two gradients of each image, which GradAlign keeps small
    (Andriushchenko and Flammarion, NeurIPS 2020, arXiv 2007.02617).

    Where either gradient is zero there is no angle, and the loss is zero.
    """
    here, there = _wide(here).flatten(1), _wide(there).flatten(1)
    angled = here.detach().any(1) & there.detach().any(1)
    return torch.where(angled, 1 - F.cosine_similarity(here, there, dim=1, eps=1e-30), 0.0)


def soft_labels(teacher_clean: Logits, *, temperature: float) -> Probabilities:
    """Return softmax(teacher / temperature), the labels of LTD and of defensive distillation."""
    return (_wide(teacher_clean.detach()) / temperature).softmax(1)


def _true(logits: Logits, labels: Labels) -> Losses:
    return _wide(logits).softmax(1).gather(1, labels[:, None]).squeeze(1)


def _wide(values: Tensor) -> Tensor:
    """Half precisions lose the small differences that divergences are made of."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
