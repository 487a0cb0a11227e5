"""Anti-DreamBooth (Van Le et al., ICCV 2023, arXiv 2303.15433): pictures that a personalised model cannot
learn."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from attacks import Objective
from attacks.ball import Images
from diffusion.finetune import attention_projections, imagine, low_rank, take_weights, train
from diffusion.model import DiffusionModel, Latents
from protect.collective import CollectiveMethod, Pictures
from protect.method import Mask, networks_in
from protect.methods.advdm import AdvDM

Learn = Callable[[Latents, int], None]


@dataclass(frozen=True)
class AntiDreamBooth(CollectiveMethod):
    """Ascend the loss of a model that is fine-tuned on pictures of the same subject; abstract.

    The clean set that it learns from are the owner's originals, and what is perturbed are the same pictures;
    the paper has two disjoint sets.
    """

    paper: ClassVar[str] = "arXiv 2303.15433"

    prompt: str = "a photo of sks person"
    """Caption under which the model sees and learns the pictures; a thief's will differ."""
    class_prompt: str = "a photo of person"
    """Caption of the pictures that prior preservation rehearses."""
    lora: bool = True
    """Train adapters of low rank, as the authors' later variant does; otherwise all of the denoiser, as the
    paper does, at four times its memory in float32."""
    rank: int = 4
    """Of the adapters."""
    learning_rate: float | None = None
    """Of the training; none stands for 1e-4 with adapters and for the paper's 5e-7 without."""
    prior_images: int = 4
    """How many pictures of the class the model makes for prior preservation; 0 leaves it out. The paper's
    200 take longer than everything else."""
    prior_weight: float = 1.0
    """Weight of their loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or self.prior_images < 0:
            raise ValueError("adapters have at least rank 1, and a number of pictures is not negative")
        if (self.learning_rate is not None and self.learning_rate < 0) or self.prior_weight < 0:
            raise ValueError("weights and learning rates must not be negative")

    def check(self, model: DiffusionModel) -> None:
        super().check(model)
        if self.lora:
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
        harder = AdvDM(prompt=self.prompt)
        return harder.objective(model, images, target=target, mask=mask, generator=generator)

    @abstractmethod
    def perturb(self, pictures: Pictures, model: DiffusionModel, generator: torch.Generator) -> None:
        """See `CollectiveMethod.perturb`."""

    def _pupil(
        self, model: DiffusionModel, pictures: Pictures, generator: torch.Generator
    ) -> tuple[DiffusionModel, list[nn.Parameter], Learn]:
        """A twin, what trains in it, and what trains it on latents for a number of updates."""
        twin = low_rank(model, rank=self.rank, generator=generator) if self.lora else model.trainable_copy()
        if not self.lora:
            twin.denoiser.float().eval()
        weights = take_weights(twin)
        rate = self.learning_rate
        if rate is None:
            rate = 1e-4 if self.lora else 5e-7
        condition, of_class = model.condition([self.prompt]), model.condition([self.class_prompt])
        prior = None

        def learn(z: Latents, steps: int) -> None:
            nonlocal prior
            with networks_in(pictures.precision, z.device):
                if prior is None and self.prior_images:
                    made = imagine(model, of_class, z, count=self.prior_images, generator=generator)
                    prior = made, of_class
                train(
                    twin,
                    z,
                    condition,
                    parameters=weights,
                    steps=steps,
                    learning_rate=rate,
                    prior=prior,
                    prior_weight=self.prior_weight,
                    generator=generator,
                )

        return twin, weights, learn


@dataclass(frozen=True)
class FSMG(AntiDreamBooth):
    """Train a model on the clean pictures, then ascend its loss on each of them."""

    train_steps: int = 100
    """Updates of the model on the clean pictures; 1000 in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_steps < 0:
            raise ValueError(f"train steps must not be negative; got {self.train_steps}")

    def perturb(self, pictures: Pictures, model: DiffusionModel, generator: torch.Generator) -> None:
        twin, _, learn = self._pupil(model, pictures, generator)
        learn(pictures.latents(clean=True), self.train_steps)
        pictures.ascend(twin, self.steps, generator)


@dataclass(frozen=True)
class ASPL(AntiDreamBooth):
    """Let a model learn the pictures as they become, and ascend the loss of one that has just seen the clean.

    In each round a copy of the model is trained on the clean pictures, the pictures ascend that copy's loss,
    and the model itself is trained on what they are by then.
    """

    rounds: int = 20
    """How often training and ascents alternate; 50 in the paper, of 6 ascents each."""
    train_steps: int = 3
    """Updates in each of a round's two trainings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1 or self.train_steps < 0:
            raise ValueError("ASPL has at least one round, and train steps are not negative")
        if self.shape != "none":
            raise ValueError("ASPL goes on from what earlier rounds made, which takes shape none")

    def perturb(self, pictures: Pictures, model: DiffusionModel, generator: torch.Generator) -> None:
        twin, weights, learn = self._pupil(model, pictures, generator)
        clean = pictures.latents(clean=True)
        for number in range(self.rounds):
            before = [weight.detach().clone() for weight in weights]
            learn(clean, self.train_steps)
            pictures.ascend(twin, self._steps_of(number), generator)
            for weight, value in zip(weights, before, strict=True):
                weight.data.copy_(value)
            if number + 1 == self.rounds or pictures.stopped:
                break
            learn(pictures.latents(), self.train_steps)

    def _steps_of(self, number: int) -> int:
        """The ascents of a round, which add up to `steps`."""
        return (number + 1) * self.steps // self.rounds - number * self.steps // self.rounds
