"""GDMP: a purifier whose way back is pulled towards the picture that came in."""

import torch

from diffusion.model import DiffusionModel
from diffusion.samplers import Step, ddpm_mean, denoise, posterior_deviation
from diffusion.schedule import Latents
from imaging.metrics import ssim
from purify.diffpure import DiffPure, Images
from purify.purifier import Draw, Move
from purify.reverse import walk


class GDMP(DiffPure):
    """Guided diffusion model for purification (Wang et al., 2022, arXiv 2205.14969).

    Each ancestral step is shifted against the gradient of a distance to the input, which is noised afresh to
    the step's level. The input therefore reaches the result at the start of the chain and at every step;
    an attack has to follow both.

    The mean squared distance pulls by a share of what is between the two, which grows with the length of a
    step. Beyond 2 the picture would be thrown further off than it was: with few steps from a large `t` the
    call raises ValueError.
    """

    def __init__(
        self,
        model: DiffusionModel,
        *,
        t: int = 36,
        steps: int | None = None,
        rounds: int = 4,
        scale: float = 60_000.0,
        eps: float = 8 / 255,
        similarity: str = "mse",
        clamp: bool = True,
    ) -> None:
        """Build the chain; see `DiffPure` for `t`, `steps`, `rounds` and `clamp`.

        Args:
            model: the prior, on pixels.
            scale: strength of the pull: 60,000 for "mse" on CIFAR-10 (re-evaluations), 70,000 for "ssim"
                (released), and 1,000 on ImageNet.
            eps: the perturbation expected, in [0, 1]: a larger one weakens the pull.
            similarity: "mse", or "ssim", whose exact gradient needs second derivatives.

        Raises:
            ValueError: as `DiffPure`, or for another similarity.
        """
        super().__init__(model, t=t, steps=steps, rounds=rounds, clamp=clamp)
        if similarity not in ("mse", "ssim"):
            raise ValueError(f"similarity must be 'mse' or 'ssim'; got {similarity!r}")
        self.scale, self.eps, self.similarity = scale, eps, similarity

    def reverse(self, t: int, steps: int) -> list[Move]:
        return [self._guided(step) for step in walk(self.model, t, steps)]

    def _guided(self, step: Step) -> Move:
        deviation = posterior_deviation(step)
        # s_t of the paper's eq. 8: the expected perturbation per channel, in [-1, 1], over the noise level
        strength = self.scale * 3 / (2 * self.eps) * step.sigma / step.alpha

        def move(z: Latents, images: Images, draw: Draw) -> Latents:
            clean, _ = denoise(self.model, z, step, None, None, 1.0, clip=False)
            mean = ddpm_mean(step, z, clean)
            if not deviation:
                return mean
            pull = strength * deviation**2
            self._check_pull(2 * pull / z[0].numel())
            noised = step.alpha * self._encode(images, images, draw) + step.sigma * draw(z, 1)
            return mean + deviation * draw(z) - pull * self._pull(z, noised)

        return move

    def _check_pull(self, share: float) -> None:
        if self.similarity == "mse" and share > 2:
            raise ValueError(
                f"a step of GDMP would overshoot the input: its pull is {share:.1f} times the distance to it;"
                f" take more steps, a smaller t or a smaller scale"
            )

    def _pull(self, z: Latents, noised: Latents) -> Latents:
        """The gradient of the distance to `noised` with respect to `z`, one distance per image."""
        if self.similarity == "mse":
            return 2 * (z - noised) / z[0].numel()
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            at = z if z.requires_grad else z.detach().requires_grad_()
            decode = self.model.decode
            distance = 1 - ssim(decode(at, clamp=False), decode(noised, clamp=False))
            return torch.autograd.grad(distance.sum(), at, create_graph=graph)[0]
