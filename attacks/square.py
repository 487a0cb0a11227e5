"""Square (Andriushchenko et al., 2020, ECCV, arXiv 1912.00049): no gradients, and models may be random."""

import torch

from attacks.ball import Images
from attacks.losses import Losses
from attacks.objectives import Objective

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    objective: Objective,
    images: Images,
    *,
    eps: float,
    queries: int = 1000,
    share: float = 0.8,
    generator: torch.Generator | None = None,
) -> Images:
    """Maximise `objective` in the Linf ball by random squares, without gradients.

    Against a random classifier pass `Expected(…, draws=20)`: a query is then a mean of 20 draws, and the
    point kept so far is judged by as many of its own. Images all see the same squares.

    Args:
        objective: one score per image, called without gradients.
        images: float [batch, channels, height, width] in [0, 1].
        eps: radius.
        queries: how many points are tried.
        share: area of the first squares as a share of the image; halved after 10, 50, 200, … queries.
        generator: randomness of places and signs.

    Returns:
        The best point of each image, detached.
    """
    original = images.detach()
    channels, height, width = original.shape[1:]
    signs = 2 * torch.randint(2, (channels, 1, width), generator=generator).to(original) - 1
    best = (original + eps * signs).clamp(0, 1)
    scores = _scores(objective, best)
    for query in range(queries):
        now = share / 2 ** sum(query >= after for after in HALVED_AFTER)
        side = min(max(round((now * height * width) ** 0.5), 1), height, width)
        top, left = (
            int(torch.randint(extent - side + 1, (), generator=generator)) for extent in (height, width)
        )
        step = 2 * eps * (2 * torch.randint(2, (channels, 1, 1), generator=generator).to(original) - 1)
        tried = best.clone()
        tried[:, :, top : top + side, left : left + side] += step
        tried = torch.minimum(torch.maximum(tried, original - eps), original + eps).clamp(0, 1)
        found = _scores(objective, tried)
        better = found > scores
        best = torch.where(better.view(-1, 1, 1, 1), tried, best)
        scores = torch.where(better, found, scores)
    return best


@torch.no_grad()
def _scores(objective: Objective, images: Images) -> Losses:
    return objective(images)
