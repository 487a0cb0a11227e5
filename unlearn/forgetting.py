"""Forget a class: score forgetting distillation of a class-conditional diffusion model, without data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from diffusion.finetune import Progress
from diffusion.losses import Losses, squared_error
from diffusion.model import Condition, DiffusionModel
from diffusion.samplers import draw
from diffusion.schedule import Latents, Timesteps
from unlearn.tuning import finite

Model = TypeVar("Model", bound=DiffusionModel)


@dataclass(frozen=True)
class Forgetting:
    """SFD (Chen, Zhang and Zhou, ICLR 2025, arXiv 2409.11219): distil a model into a generator of one step,
    and override one of its classes on the way.

    A generator draws a picture of a class at once: the clean picture that it sees in pure noise at `start`.
    A fake score learns to denoise what the generator draws, and the generator descends the difference of the
    teacher's score and the fake one, by score identity distillation. For the class that is to be forgotten
    the teacher is told the class that takes its place, so that the generator draws that one.
    """

    forget: str
    override: str
    alpha: float = 1.2
    start: int = 440
    """Of 1000: the time at which the generator sees noise."""
    times: tuple[int, int] = (38, 712)
    """Of 1000: at which scores are compared, the last one not among them."""
    forget_weight: float = 0.01
    """Of the forgotten class, in both losses, against 1 for the others."""
    learning_rate: float = 1e-5
    clip: float = 1.0
    """Largest entry of a gradient."""

    def __post_init__(self) -> None:
        if self.forget == self.override:
            raise ValueError(f"the class {self.forget!r} cannot take its own place")

    def distil(
        self,
        model: Model,
        classes: Sequence[str],
        like: Latents,
        *,
        steps: int,
        batch_size: int = 32,
        generator: torch.Generator | None = None,
        callback: Progress | None = None,
    ) -> Model:
        """Return the generator, frozen; `generated` draws with it. `model` stays as it is.

        Args:
            model: the teacher, told a class.
            classes: all of its classes by name, the two of this method among them.
            like: any latent of the size to learn, [1, channels, height, width].
            steps: updates of either network.
            batch_size: pictures of other classes per update; a quarter as many are of the forgotten one.
            generator: of classes, times and noises.
            callback: as for `diffusion.finetune.train`, told the generator's weighted sum of both losses.

        Raises ValueError for classes that there are not, NonFiniteError for a loss that is not finite.
        """
        lacking = {self.forget, self.override} - set(classes)
        if lacking:
            absent = ", ".join(sorted(lacking))
            raise ValueError(f"the model is not told {absent}; it knows {', '.join(classes)}")
        student, score = (model.trainable_copy().eval() for _ in range(2))
        remain = [name for name in classes if name != self.forget]

        def updated(network: DiffusionModel, adam: torch.optim.Adam, loss: Callable[..., Losses]) -> Tensor:
            total = torch.zeros(())
            for names, weight in ((remain, 1.0), ([self.forget], self.forget_weight)):
                size = batch_size if weight == 1.0 else max(1, batch_size // 4)
                drawn = torch.randint(len(names), (size,), generator=generator)
                told = [names[int(number)] for number in drawn]
                found = finite(loss(model, student, score, told, like, generator).mean())
                total = total.to(found) + weight * found
            weights = list(network.denoiser.parameters())
            slopes = torch.autograd.grad(total, weights, materialize_grads=True)
            for each, slope in zip(weights, slopes, strict=True):
                each.grad = slope.clamp(-self.clip, self.clip)
            adam.step()
            return total.detach()

        scores, students = self._adam(score), self._adam(student)
        for step in range(steps):
            updated(score, scores, self.score_loss)
            total = updated(student, students, self.generator_loss)
            if callback is not None:
                callback(step, total[None])
        return student.freeze()

    def score_loss(
        self,
        teacher: DiffusionModel,
        student: DiffusionModel,
        score: DiffusionModel,
        told: Sequence[str],
        like: Latents,
        generator: torch.Generator | None,
    ) -> Losses:
        """Return the squared error of the noise when the fake score denoises what the generator draws."""
        condition = teacher.condition(told)
        with torch.no_grad():
            z = self._drawn(student, condition, len(told), like, generator)
        z_t, noise, t = self._noised(teacher, z, generator)
        return squared_error(score.predict_noise(z_t, t, condition), noise)

    def generator_loss(
        self,
        teacher: DiffusionModel,
        student: DiffusionModel,
        score: DiffusionModel,
        told: Sequence[str],
        like: Latents,
        generator: torch.Generator | None,
    ) -> Losses:
        """Return (p - s) ((p - z) - alpha (p - s)) / mean |p - z|, summed over entries.

        p is what the teacher sees behind the noised picture, told what is to be there, and s what the fake
        score sees.
        """
        own = teacher.condition(told)
        aims = teacher.condition([self.override if name == self.forget else name for name in told])
        z = self._drawn(student, own, len(told), like, generator)
        z_t, _, t = self._noised(teacher, z, generator)
        real, fake = teacher.predict_clean(z_t, t, aims), score.predict_clean(z_t, t, own)
        apart = real - fake
        scale = (real - z).detach().abs().flatten(1).mean(1).clamp_min(1e-5)
        return (apart * ((real - z) - self.alpha * apart)).flatten(1).sum(1) / scale

    def generated(
        self,
        student: DiffusionModel,
        told: Sequence[str],
        like: Latents,
        generator: torch.Generator | None = None,
    ) -> Latents:
        """Return latents of pictures of classes, drawn in one step."""
        with torch.no_grad():
            return self._drawn(student, student.condition(told), len(told), like, generator)

    def _drawn(
        self,
        student: DiffusionModel,
        condition: Condition,
        count: int,
        like: Latents,
        generator: torch.Generator | None,
    ) -> Latents:
        noise = draw(like.expand(count, *like.shape[1:]), generator)
        t = torch.full((count,), self.start * len(student.schedule) // 1000, device=noise.device)
        return student.predict_clean(noise, t, condition)

    def _noised(
        self, model: DiffusionModel, z: Latents, generator: torch.Generator | None
    ) -> tuple[Latents, Tensor, Timesteps]:
        low, high = (each * len(model.schedule) // 1000 for each in self.times)
        place = z.device if generator is None else generator.device
        t = torch.randint(low, high, (len(z),), generator=generator, device=place).to(z.device)
        noise = draw(z, generator)
        return model.schedule.add_noise(z, noise, t), noise, t

    def _adam(self, network: DiffusionModel) -> torch.optim.Adam:
        weights = network.denoiser.parameters()
        return torch.optim.Adam(weights, lr=self.learning_rate, betas=(0.0, 0.999))
