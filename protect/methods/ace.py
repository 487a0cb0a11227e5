"""ACE (Zheng et al., ICLR 2025, arXiv 2310.04687): whoever learns the picture learns one error."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks import Objective, with_gradient
from attacks.ball import Images, Losses
from diffusion.finetune import attention_projections, imagine, low_rank, take_weights, train
from diffusion.losses import split_gradient
from diffusion.model import DiffusionModel, Latents
from protect.method import Mask
from protect.methods.alternating import AlternatingMethod, Learn
from protect.methods.draws import draw_noise


@dataclass(frozen=True)
class Ace(AlternatingMethod):
    """Pull the predicted noise to the latent of a target, at every time, while adapters learn the picture.

    Descend `mean((noise_predicted(z_t, t) - z_T)^2) + latent_weight · mean((z - z_T)^2)`, `z_T` being the
    target's latent. After each round but the last, adapters of low rank are trained on the picture as it is
    by then, with prior preservation.
    """

    paper: ClassVar[str] = "arXiv 2310.04687"

    prompt: str = "a photo of sks painting"
    """Caption under which the model sees and learns the picture; a thief's will differ."""
    class_prompt: str = "a photo of a painting"
    """Caption of the pictures that prior preservation rehearses."""
    latent_weight: float = 0.0
    """Pull of the latent itself towards the target's; 100 is ACE+."""
    rounds: int = 5
    """How many times the steps stop, all but the last time for training."""
    train_steps: int = 5
    """Updates of the adapters after a round."""
    learning_rate: float = 1e-4
    """Of the adapters' training."""
    rank: int = 4
    """Of the adapters."""
    prior_images: int = 4
    """How many pictures of the class the model makes for prior preservation; 0 leaves it out. The paper's
    200 take longer than everything else."""
    prior_weight: float = 1.0
    """Weight of their loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1 or self.train_steps < 0 or self.prior_images < 0 or self.rank < 1:
            raise ValueError("ACE has at least one round and rank 1, and no negative number of anything")
        if min(self.latent_weight, self.learning_rate, self.prior_weight) < 0:
            raise ValueError("ACE's weights and learning rate must not be negative")

    def check(self, model: DiffusionModel) -> None:
        super().check(model)
        attention_projections(model)

    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        condition = model.condition([self.prompt])
        with torch.no_grad():
            z_target = model.encode(target)

        def consistent_error(perturbed: Images) -> Losses:
            with torch.no_grad():
                z = model.encode(perturbed)
            t, noise = draw_noise(model, z, generator)

            def away(leaf: Latents) -> Losses:
                z_t = model.schedule.add_noise(leaf, noise, t)
                error = model.predict_noise(z_t, t, condition) - z_target
                loss = error.square().flatten(1).mean(1)
                return loss + self.latent_weight * (leaf - z_target).square().flatten(1).mean(1)

            loss, gradient = split_gradient(away, z)
            return with_gradient(model.encode(perturbed), -gradient, -loss)

        return consistent_error

    def learns_after(self, step: int) -> bool:
        return (step + 1) * self.rounds // self.steps > step * self.rounds // self.steps

    def pupil(self, model: DiffusionModel, generator: torch.Generator) -> tuple[DiffusionModel, Learn]:
        twin = low_rank(model, rank=self.rank, generator=generator)
        weights, condition = take_weights(twin), model.condition([self.prompt])
        prior = None

        def learn(z: Latents) -> None:
            nonlocal prior
            if self.prior_images and prior is None:
                of_class = model.condition([self.class_prompt])
                made = imagine(model, of_class, z, count=self.prior_images, generator=generator)
                prior = made, of_class
            train(
                twin,
                z,
                condition,
                parameters=weights,
                steps=self.train_steps,
                learning_rate=self.learning_rate,
                prior=prior,
                prior_weight=self.prior_weight,
                generator=generator,
            )

        return twin, learn
