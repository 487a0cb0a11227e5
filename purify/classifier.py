"""A classifier behind a purifier: logits for one draw, and decisions over several."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusion.tape import Seeds
from purify.methods import unknown
from purify.purifier import Images

Logits = Float[Tensor, "batch classes"]
VOTES = ("majority", "mean_prob", "mean_logit")


class Decision(NamedTuple):
    """The class decided for each image, and how many draws said each class."""

    classes: Int[Tensor, " batch"]
    counts: Int[Tensor, "batch classes"]


class PurifiedClassifier(nn.Module):
    """`nn.Sequential(purifier, classifier)` whose noise can be chosen and whose decisions can be voted on.

    The purifier may stand behind one of `attacks.adaptive`'s gradients.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.purifier, self.classifier = purifier, classifier

    def forward(self, images: Images, seeds: Seeds | None = None) -> Logits:
        """Return the logits of one draw for each image, of the noise that `seeds` name."""
        return self.classifier(self.purifier(images, seeds))

    @torch.no_grad()
    def predict(
        self,
        images: Images,
        *,
        draws: int = 1,
        vote: str = "majority",
        seed: int | None = None,
    ) -> Decision:
        """Classify by several independent draws.

        Args:
            images: float [batch, channels, height, width] in [0, 1].
            draws: how many; they are run one batch after another.
            vote: "majority", whose ties go to the tied class of highest mean probability; "mean_prob";
                "mean_logit".
            seed: makes the decision repeatable; every image gets the same noise.

        Raises:
            ValueError: for another vote, or no draw.
        """
        if vote not in VOTES:
            raise ValueError(unknown("vote", vote, list(VOTES)))
        if draws < 1:
            raise ValueError(f"at least one draw is needed; got {draws}")
        logits = torch.stack([self(images, self._seeds(len(images), seed, draw)) for draw in range(draws)])
        probabilities = logits.softmax(2).mean(0)
        counts = nn.functional.one_hot(logits.argmax(2), logits.shape[2]).sum(0)
        if vote == "majority":
            # a mean probability is below one, so it orders tied counts and nothing else
            return Decision((counts + probabilities * (1 - 1e-6)).argmax(1), counts)
        return Decision((probabilities if vote == "mean_prob" else logits.mean(0)).argmax(1), counts)

    def _seeds(self, batch: int, seed: int | None, draw: int) -> Seeds | None:
        return None if seed is None else torch.full((batch,), seed + draw)
