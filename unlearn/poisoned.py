"""ABL: a repair from the poisoned set itself, which says of which pictures the backdoor is made."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from unlearn.triggers import Images, Labels
from unlearn.tuning import evaluated, finite

Losses = Float[Tensor, " n"]


def trapped(losses: Losses, level: float = 0.5) -> Losses:
    """Return losses whose gradient is turned round below `level`: local gradient ascent.

    In the first epochs on a poisoned set it keeps clean pictures at that level, which marked ones, learned
    faster, leave: sign(loss - level) loss (Li et al., NeurIPS 2021, arXiv 2110.11571, eq. 4).
    """
    return (losses - level).sign() * losses


def flooded(losses: Losses, level: float = 0.5) -> Losses:
    """Return losses that are turned round below `level` (Ishida et al., ICML 2020, arXiv 2002.08709)."""
    return (losses - level).abs() + level


@torch.no_grad()
def isolated(
    network: nn.Module, images: Images, labels: Labels, *, share: float = 0.01, batch_size: int = 250
) -> Bool[Tensor, " n"]:
    """Return which pictures of a set the network finds easiest, a `share` of them.

    They are marked ones if the network was trained by `trapped` or is fully backdoored. Where fewer pictures
    are marked than the share, clean ones are among them.

    Raises ValueError where the share is not between no picture and all of them.
    """
    count = round(share * len(labels))
    if not 0 < count < len(labels):
        raise ValueError(f"a share of {share:g} is {count} of {len(labels)} pictures")
    with evaluated(network):
        losses = [
            F.cross_entropy(network(some), own, reduction="none")
            for some, own in zip(images.split(batch_size), labels.split(batch_size), strict=True)
        ]
    found = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    found[torch.cat(losses).argsort()[:count]] = True
    return found


def anti_backdoor(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    share: float = 0.01,
    epochs: int = 5,
    learning_rate: float = 5e-4,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Unlearn the pictures that are learned best (ABL, Li et al., NeurIPS 2021, arXiv 2110.11571, stage 2).

    The pictures are the poisoned training set. The network ascends the loss of the `share` that `isolated`
    finds, by SGD with momentum 0.9 and weight decay 5e-4.
    """
    found = isolated(network, images, labels, share=share)
    some_images, some_labels = images[found], labels[found]
    descent = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4)
    network.train()
    for _ in range(epochs):
        for some in torch.randperm(len(some_labels), generator=generator).split(batch_size):
            if len(some) > 1:  # batch statistics of one picture have no variance
                loss = finite(F.cross_entropy(network(some_images[some]), some_labels[some]))
                descent.zero_grad()
                (-loss).backward()
                descent.step()
    return network.eval()
