"""A clean student of a backdoored teacher."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Logits = Float[Tensor, "n classes"]
Losses = Float[Tensor, " n"]


def distilled(
    student: Logits,
    teacher: Logits,
    labels: Int[Tensor, " n"],
    *,
    share: float = 0.5,
    temperature: float = 10.0,
) -> Losses:
    """Return the loss of a student on variations of a poisoned set (Struppek et al., 2023, arXiv 2310.06372).

    It is `share` times temperature^2 times the divergence from the softened teacher, plus 1 - `share` times
    the cross-entropy to labels, which for marked pictures are wrong: the teacher, who sees no trigger in a
    variation, outvotes them. The released code takes the cross-entropy of logits that were divided by the
    temperature, which leaves next to nothing of the labels; here they are not.
    """
    soft, aim = (each / temperature for each in (student, teacher.detach()))
    apart = F.kl_div(soft.log_softmax(1), aim.log_softmax(1), reduction="none", log_target=True).sum(1)
    said = F.cross_entropy(student, labels, reduction="none")
    return share * temperature**2 * apart + (1 - share) * said
