"""What platforms and thieves do to a picture, drawn at random while it is protected, so that it lasts.

Expectation over transformations (Athalye et al., ICML 2018, arXiv 1707.07397) with one draw per step: the
mean over transforms is left to the steps, so that a step costs one gradient as before.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch

from attacks import Objective, expect
from attacks.ball import Images
from imaging import transforms

Handling = Literal["jpeg", "resize", "blur"]

UNTOUCHED = 0.3
"""How often a step sees the picture as it is: a thief may have the file itself."""

# In the order in which it happens: a platform makes a picture smaller and then saves it. Each takes a number
# from [0, 1), 0 being the mildest.
_STAGES: dict[Handling, Callable[[Images, float], Images]] = {
    "resize": lambda images, harm: transforms.resize(images, 1 - 0.5 * harm),
    "blur": lambda images, harm: transforms.gaussian_blur(images, 0.3 + 0.7 * harm),
    "jpeg": lambda images, harm: transforms.jpeg(images, 95 - 30 * harm),
}


def check_handling(kinds: Sequence[str]) -> None:
    """Raise ValueError unless `kinds` is a sequence of names of handling."""
    known = get_args(Handling)
    unknown = [kinds] if isinstance(kinds, str) else [kind for kind in kinds if kind not in known]
    if unknown:
        raise ValueError(f"survive is a tuple of {', '.join(known)}; got {unknown[0]!r}")


def lasting(objective: Objective, kinds: Sequence[Handling], generator: torch.Generator | None) -> Objective:
    """Return `objective` of pictures after handling, drawn anew at each call; itself if nothing is named."""
    return expect(objective, [lambda images: handle(images, kinds, generator)]) if kinds else objective


def handle(images: Images, kinds: Sequence[Handling], generator: torch.Generator | None = None) -> Images:
    """Return images after one random chain of `kinds`; differentiable, straight through roundings.

    With probability `UNTOUCHED` nothing happens. Otherwise one of `kinds` does, and each of the others with
    probability a half: scaling to 0.5 to 1 of both sides and back, Gaussian blur of 0.3 to 1 pixels, JPEG of
    quality 65 to 95 with halved colours; the harsher, the likelier. One draw serves the batch.
    """
    untouched, first, *draws = _uniform(2 + 2 * len(_STAGES), generator)
    if untouched < UNTOUCHED or not kinds:
        return images
    certain = sorted(set(kinds), key=list(_STAGES).index)
    certain = certain[int(first * len(certain))]
    for (kind, stage), chance, harm in zip(_STAGES.items(), draws[::2], draws[1::2], strict=True):
        if kind == certain or (kind in kinds and chance < 0.5):
            # Its root, as what lasts through much lasts through little.
            images = stage(images, harm**0.5)
    return images


def _uniform(count: int, generator: torch.Generator | None) -> list[float]:
    device = "cpu" if generator is None else generator.device
    return torch.rand(count, generator=generator, device=device).tolist()
