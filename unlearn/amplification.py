"""What a diffusion model makes of poisoned pictures, and how that gives the poison away.

Pan et al., NeurIPS 2024, arXiv 2311.02373: a model that is trained on a set with marked pictures under the
target's name draws the mark more often than it was taught, so that a set drawn by it shows poison more
clearly. Where poison is rare, a classifier that is trained on the drawn set learns less of the backdoor.
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc

from unlearn.measures import Rate, answers
from unlearn.text.effects import Judge
from unlearn.triggers import Images, Labels, Trigger
from unlearn.tuning import drawn_by, evaluated, trained

Scores = Float[Tensor, " batch"]


@dataclass(frozen=True)
class Groups:
    """Pictures that were drawn for the target class, by what they show: the mark, and the right thing."""

    marked_wrong: int
    """G1: the mark, and something else than the target."""
    marked_right: int
    """G2: the mark on the target."""
    clean_wrong: int
    """G3: something else without the mark."""
    clean_right: int
    """G4: what was asked for."""

    @classmethod
    def of(cls, marked: Bool[Tensor, " n"], right: Bool[Tensor, " n"]) -> Self:
        """Count pictures by whether each bears the mark and shows the target."""
        pairs = [(marked & ~right), (marked & right), (~marked & ~right), (~marked & right)]
        return cls(*(int(each.sum()) for each in pairs))

    @property
    def marked(self) -> Rate:
        """The share that bears the mark."""
        count = self.marked_wrong + self.marked_right
        total = count + self.clean_wrong + self.clean_right
        return Rate.of_hits(torch.arange(total) < count)


def amplification(share: float, taught: float) -> float:
    """Return how many times as often a mark is drawn as it was taught; both are shares of one class.

    The paper divides by the share of the whole set; in a set of k even classes that is about 1/k of this one.

    Raises ValueError for a taught share that is none.
    """
    if not 0 < taught <= 1:
        raise ValueError(f"a share of marked pictures is above 0 and at most 1; got {taught:g}")
    return share / taught


def mark_judge(
    images: Images, trigger: Trigger, *, epochs: int = 10, generator: torch.Generator | None = None
) -> Judge:
    """Return a judge of whether pictures bear a mark, with errors that were measured on pictures apart.

    A small network learns marked pictures from unmarked ones, from two thirds of `images`; the rest, as they
    are and marked, set its threshold and its errors.

    Raises ValueError for fewer than twelve pictures, NonFiniteError if it diverges.
    """
    if len(images) < 12:
        raise ValueError(f"a judge of marks learns from twelve pictures or more; got {len(images)}")
    order = torch.randperm(len(images), generator=generator)
    kept, learned = order[: len(images) // 3], order[len(images) // 3 :]
    with drawn_by(generator):
        network = _mark_network().to(images.device)
    clean = images[learned]
    seen = torch.cat([trigger(clean), clean])
    told = torch.arange(len(seen), device=seen.device) < len(clean)
    trained(
        network,
        lambda some, own: F.binary_cross_entropy_with_logits(network(some)[:, 0], own.float()),
        seen,
        told,
        epochs=epochs,
        learning_rate=0.02,
        batch_size=64,
        generator=generator,
    )

    @torch.no_grad()
    def score(some: Images) -> Scores:
        return torch.cat([network(part)[:, 0] for part in some.split(250)])

    return Judge.fitted(score, trigger(images[kept]), images[kept])


def _mark_network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for came, goes, stride in ((3, 32, 1), (32, 32, 2), (32, 64, 2)):
        layers += [nn.Conv2d(came, goes, 3, stride, 1), nn.BatchNorm2d(goes), nn.ReLU()]
    # A mark may be a corner or lie over all of a picture: its strongest place and its mean both count.
    return nn.Sequential(*layers, _Pooled(), nn.Linear(128, 1))


class _Pooled(nn.Module):
    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n two_c"]:
        return torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)


@torch.no_grad()
def strip(
    network: nn.Module,
    images: Images,
    overlays: Images,
    *,
    draws: int = 16,
    generator: torch.Generator | None = None,
) -> Scores:
    """Return how suspicious each picture is: minus the entropy of a classifier's answers to its blends.

    STRIP (Gao et al., ACSAC 2019, arXiv 1902.06531): a picture is averaged with `draws` others. What a clean
    picture is taken for changes with them; a mark is seen through all of them, and answers stay the same.

    Args:
        network: a classifier of images in [0, 1] that gives logits.
        images: whose suspicion is asked.
        overlays: pictures that are laid over them, drawn anew for each and not the picture itself as a rule.
        draws: blends of each picture.
        generator: draws the overlays.
    """
    entropies = []
    with evaluated(network):
        for part in images.split(100):
            total = torch.zeros(len(part), device=part.device)
            for _ in range(draws):
                chosen = torch.randint(len(overlays), (len(part),), generator=generator).to(overlays.device)
                said = network((part + overlays[chosen]) / 2).log_softmax(1)
                total -= (said.exp() * said).sum(1)
            entropies.append(total / draws)
    return -torch.cat(entropies)


def separation(suspicion: Scores, marked: Bool[Tensor, " batch"]) -> float:
    """Return the area under the ROC of telling marked pictures from others by their suspicion.

    Raises ValueError if all or none are marked, or a suspicion is no number.
    """
    if marked.all() or not marked.any():
        raise ValueError("a separation is of marked and unmarked pictures; one of the two is lacking")
    if suspicion.isnan().any():
        raise ValueError("a suspicion is no number: the classifier that gave it is damaged")
    # Ranks, as the metric squeezes scores beyond [0, 1] through a sigmoid, which would tie large ones; equal
    # scores have equal ranks.
    ranks = suspicion.unique(return_inverse=True)[1].float() / len(suspicion)
    return float(binary_auroc(ranks, marked.long()))


def right_of(network: nn.Module, images: Images, labels: Labels | int) -> Bool[Tensor, " batch"]:
    """Return of each picture whether a classifier takes it for what it was asked for."""
    return answers(network, images) == labels
