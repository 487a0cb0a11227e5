"""DiffHammer: aim at the weakness that many draws of a purifier share."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu

from attacks.adaptive.gradients import Chain, Exact
from attacks.ball import Ball, Images
from attacks.losses import Labels, Loss, Losses, margin
from attacks.objectives import with_gradient

Gradients = Float[Tensor, "batch draws entries"]


class Hammer:
    """The objective of DiffHammer (Wang et al., 2024, NeurIPS), for `apgd`; its gradient is no plain one.

    Each call purifies every image `draws` times without a graph and takes the classifier's gradient at each
    purified picture. The draw whose direction would gain most over all draws is selected, an
    expectation-maximisation weighs the draws that can be broken together with it, and their weighted
    gradient is grafted onto the selected draw's purified picture and carried through its chain exactly.
    The gradient is averaged over iterations with weight `(iteration + 1)^-1/2`. The value is the mean loss.

    The released code drops the result of its maximisation steps: `em_steps=1` is what it does.
    """

    def __init__(
        self,
        purifier: Chain,
        classifier: nn.Module,
        labels: Labels,
        ball: Ball,
        *,
        eps: float,
        loss: Loss = margin,
        draws: int = 10,
        em_steps: int = 5,
        sharpness: float = 5.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.purifier, self.exact, self.classifier = purifier, Exact(purifier), classifier
        self.labels, self.ball, self.eps, self.loss = labels, ball, eps, loss
        self.draws, self.em_steps, self.sharpness, self.generator = draws, em_steps, sharpness, generator
        self.average: Images | None = None
        self.calls = 0

    def __call__(self, images: Images) -> Losses:
        seeds = torch.randint(2**62, (self.draws,), generator=self.generator)
        losses, gradients = self._judged(images.detach(), seeds)
        selected, grafted = self._grafted(losses, gradients, images.shape[1:])
        gradient = self._through(images.detach(), seeds[selected.cpu()], grafted)
        recent = (self.calls + 1) ** -0.5
        self.average = gradient if self.average is None else recent * gradient + (1 - recent) * self.average
        self.calls += 1
        return with_gradient(images, self.average, losses.mean(1))

    def _judged(self, images: Images, seeds: Tensor) -> tuple[Float[Tensor, "batch draws"], Gradients]:
        """The loss of each draw, and its gradient at the purified picture."""
        repeated = images.repeat_interleave(self.draws, 0)
        with torch.no_grad():
            purified = self.purifier(repeated, seeds.repeat(len(images)))
        with torch.enable_grad():
            leaf = purified.detach().requires_grad_()
            losses = self.loss(self.classifier(leaf), self.labels.repeat_interleave(self.draws))
            (gradient,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses))
        shape = (len(images), self.draws)
        return losses.detach().view(shape), gradient.view(*shape, -1)

    def _grafted(
        self, losses: Float[Tensor, "batch draws"], gradients: Gradients, shape: torch.Size
    ) -> tuple[Tensor, Images]:
        """The draw to go through, and what to carry through it, for each image."""
        units = self._units(gradients, shape)
        # gain[b, j, i]: the loss of draw i to first order after a full step along draw j's direction
        gain = losses[:, None] + self.eps * units @ gradients.transpose(1, 2)
        selected = elu(gain).sum(2).argmax(1)
        direction = gradients[torch.arange(len(losses)), selected]
        for _ in range(self.em_steps):
            unit = self._units(direction[:, None], shape)
            reached = losses + self.eps * (unit @ gradients.transpose(1, 2))[:, 0]
            weights = torch.sigmoid(self.sharpness * reached)[..., None]
            direction = (weights * gradients).sum(1) / weights.sum(1).clamp_min(1e-12)
        return selected, direction.view(-1, *shape)

    def _units(self, gradients: Gradients, shape: torch.Size) -> Gradients:
        flat = self.ball.steepest(gradients.reshape(-1, *shape))
        return flat.view(gradients.shape)

    def _through(self, images: Images, seeds: Tensor, cotangent: Images) -> Images:
        with torch.enable_grad():
            leaf = images.requires_grad_()
            return torch.autograd.grad(self.exact(leaf, seeds), leaf, cotangent)[0]
