"""Privacy distillation: a second model learns from what a first one draws, without what it has by heart.

Fernandez et al., 2023, arXiv 2306.01322. A model that was trained on private pictures draws some of them
again. A re-identification network finds those among its draws, they are left out, and a fresh model learns
from the rest: it has never seen a private picture. The risk of either is the share of its draws that are
re-identified, beside the same share of real pictures that nobody trained on.
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from unlearn.measures import Rate
from unlearn.triggers import Images
from unlearn.tuning import drawn_by, finite

Vectors = Float[Tensor, "batch dim"]
Similarities = Float[Tensor, " batch"]


class Reidentifier(nn.Module):
    """Says how alike two pictures are as pictures of one thing: the cosine of their embeddings.

    It learns that two views of a picture, cropped, mirrored and with other light, belong together, and no
    other two of a batch (NT-Xent; Chen et al., ICML 2020, arXiv 2002.05709).
    """

    def __init__(self, width: int = 32, dim: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        came = 3
        for goes, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            layers += [nn.Conv2d(came, goes, 3, stride, 1), nn.BatchNorm2d(goes), nn.ReLU()]
            came = goes
        # Four places of each channel: where things are is part of what a picture shows.
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * came, dim))

    def forward(self, images: Images) -> Vectors:
        """Return one vector of length one for each picture."""
        return F.normalize(self.layers(images), dim=1)

    @classmethod
    def fitted(
        cls,
        images: Images,
        *,
        epochs: int = 30,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        temperature: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Return a network that has learned to tell these pictures from each other, frozen.

        Raises ValueError for fewer than two pictures, NonFiniteError if it diverges.
        """
        if len(images) < 2:
            raise ValueError(f"pictures are told from each other: give two or more; got {len(images)}")
        with drawn_by(generator):
            network = cls().to(images.device)
        descent = torch.optim.AdamW(network.parameters(), lr=learning_rate)
        for _ in range(epochs):
            for part in torch.randperm(len(images), generator=generator).split(batch_size):
                if len(part) > 1:  # one picture has nothing to be told from
                    one, other = (network(view(images[part], generator)) for _ in range(2))
                    loss = finite(contrast(one, other, temperature))
                    descent.zero_grad()
                    loss.backward()
                    descent.step()
        return network.eval().requires_grad_(False)


def contrast(one: Vectors, other: Vectors, temperature: float) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of finding each vector's partner among all others of both views."""
    vectors = torch.cat([one, other])
    alike = vectors @ vectors.T / temperature
    alike = alike.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=alike.device), -torch.inf)
    partners = torch.arange(len(vectors), device=alike.device).roll(len(one))
    return F.cross_entropy(alike, partners)


def view(images: Images, generator: torch.Generator | None) -> Images:
    """Return the pictures shifted by up to an eighth, mirrored every second time, and lighter or darker."""
    count, side = len(images), images.shape[-1]
    reach = max(1, side // 8)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    tops, lefts = (torch.randint(2 * reach + 1, (count,), generator=generator).tolist() for _ in range(2))
    moved = torch.stack(
        [
            one[:, top : top + images.shape[-2], left : left + side]
            for one, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )
    turned = (torch.rand(count, generator=generator) < 0.5).to(images.device)
    moved = torch.where(turned[:, None, None, None], moved.flip(-1), moved)
    light = 0.8 + 0.4 * torch.rand(count, generator=generator).to(images)
    return (moved * light[:, None, None, None]).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Memory:
    """The private pictures as a network sees them, and how alike a picture has to be to count as one."""

    network: nn.Module
    private: Vectors
    threshold: float

    @classmethod
    def of(cls, network: nn.Module, private: Images, others: Images, *, false_matches: float = 0.01) -> Self:
        """Return a memory whose threshold a share `false_matches` of real, other pictures exceeds.

        Raises ValueError for a share that is not above 0 and below 1, or too few pictures to tell it by.
        """
        if not 0 < false_matches < 1:
            raise ValueError(f"a share of false matches is above 0 and below 1; got {false_matches:g}")
        if len(others) * false_matches < 1:
            raise ValueError(
                f"{len(others)} other pictures cannot tell a share of {false_matches:g}: "
                f"give {round(1 / false_matches)} or more"
            )
        vectors = _embedded(network, private)
        alike = _nearest(_embedded(network, others), vectors)
        return cls(network, vectors, float(alike.quantile(1 - false_matches)))

    def similarity(self, images: Images) -> Similarities:
        """Return how alike each picture is to the private picture that it is nearest to."""
        return _nearest(_embedded(self.network, images), self.private)

    def recognises(self, images: Images) -> Bool[Tensor, " batch"]:
        """Return of each picture whether it counts as one of the private ones."""
        return self.similarity(images) > self.threshold

    def risk(self, images: Images) -> Rate:
        """Return the share of pictures that count as private ones."""
        return Rate.of_hits(self.recognises(images))


@torch.no_grad()
def _embedded(network: nn.Module, images: Images) -> Vectors:
    return torch.cat([network(part) for part in images.split(250)])


def _nearest(vectors: Vectors, memory: Vectors) -> Similarities:
    return torch.cat([(part @ memory.T).amax(1) for part in vectors.split(1000)])
