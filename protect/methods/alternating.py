"""Methods whose surrogate learns the picture while it is being perturbed, as a thief's model will."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attacks.ball import Images, Losses
from diffusion.model import DiffusionModel, Latents
from protect.ensemble import Models
from protect.method import Mask, Progress, ProtectionMethod, networks_in
from protect.methods.draws import repeatable
from protect.progress import Counted

Learn = Callable[[Latents], None]


@dataclass(frozen=True)
class AlternatingMethod(ProtectionMethod):
    """A method that trains a twin of the surrogate between its ascents; abstract.

    Each picture of a batch, and each tile of a large one, has a twin of its own, so that its result does not
    depend on the pictures beside it. The model that is handed in stays as it is.
    """

    @abstractmethod
    def pupil(self, model: DiffusionModel, generator: torch.Generator) -> tuple[DiffusionModel, Learn]:
        """Return a twin of `model`, and what trains it in place on the latents of the perturbed picture."""

    @abstractmethod
    def learns_after(self, step: int) -> bool:
        """Whether the twin is trained after this step (0, 1, …)."""

    def protect(
        self,
        images: Images,
        model: Models,
        *,
        mask: Mask | None = None,
        target: Images | None = None,
        generator: torch.Generator | None = None,
        precision: torch.dtype = torch.float32,
        callback: Progress | None = None,
    ) -> Images:
        """Perturb `images`, one after the other; see `ProtectionMethod.protect`.

        The steps that `callback` hears of are those of all pictures, divided by their number.
        """
        (surrogate,) = self.surrogates(model)
        deal = repeatable(generator)
        told = Counted(callback, steps=self.steps, total=len(images) * self.steps)
        done = []
        for index, image in enumerate(images.split(1)):
            draws = deal()
            twin, learn = self.pupil(surrogate, draws)

            def between(step: int, perturbed: Images, losses: Losses, twin=twin, learn=learn) -> bool:
                if told(step, perturbed, losses):
                    return True
                if step + 1 < self.steps and self.learns_after(step):
                    with networks_in(precision, perturbed.device):
                        with torch.no_grad():
                            z = twin.encode(perturbed)
                        learn(z)
                return False

            protected = super().protect(
                image,
                twin,
                mask=_own(mask, index),
                target=_own(target, index),
                generator=draws,
                precision=precision,
                callback=between,
            )
            done.append(protected)
        return torch.cat(done)


def _own(planes: torch.Tensor | None, index: int) -> torch.Tensor | None:
    """The row that belongs to one picture; a single one belongs to all."""
    return planes if planes is None or len(planes) == 1 else planes[index : index + 1]
