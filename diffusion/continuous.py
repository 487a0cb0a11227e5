"""Pixel models that know noise levels or times and no timesteps: any EDM or score-SDE network.

Their own code builds the network and reads its weights; the classes here put it behind `DiffusionModel`.
Networks are called in float32, or float64 if their weights are; for less, run them under autocast.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import one_hot

from diffusion.model import Condition, PixelSpace
from diffusion.schedule import Latents, NoiseSchedule, Timesteps

NoiseLevels = Float[Tensor, " batch"]
ClassVectors = Float[Tensor, "batch classes"]


class EDM(PixelSpace):
    """A denoiser of Karras et al. (2022, NeurIPS, arXiv 2206.00364): `network(x, sigma, class_labels)`.

    It returns the clean picture expected behind `x = clean + sigma * noise` in [-1, 1] pixels, so it is
    called with `x = z_t / alpha` and the level `sigma / alpha`, one for each picture. `class_labels` are
    one-hot rows, and None without classes. A network that still lacks its preconditioning goes into
    `Preconditioned` first.

    Levels are all it knows, so `schedule` is free: it decides what `t` means. DDPM's,
    `NoiseSchedule.linear(clip=1.0)`, reaches from 0.01 to 157 in the network's units; the paper's sampler
    starts at 80, which is timestep 929.
    """

    fixed_size = True

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        *,
        name: str,
        side: int,
        channels: int = 3,
        multiple: int | None = None,
        classes: int = 0,
    ) -> None:
        """Wrap a network, and freeze it.

        Args:
            network: in [-1, 1] pixels, as above.
            schedule: the levels that timesteps stand for.
            name: for messages and reports.
            side: of the pictures that it was trained on, in pixels.
            channels: of those pictures.
            multiple: what sides have to be multiples of; `side` unless given, which is right for any network.
            classes: how many it is told apart by; prompts are their numbers.

        Raises:
            ValueError: for a schedule that starts without noise or ends without a picture, and a side or
                multiple that is not positive.
        """
        super().__init__(
            schedule,
            prediction="sample",
            name=name,
            multiple=_positive(side if multiple is None else multiple, "multiple"),
            latent_channels=channels,
            comfortable=_positive(side, "side"),
        )
        if not (schedule.alpha.min() > 0 and schedule.sigma.min() > 0):
            raise ValueError(
                f"{name} knows noise relative to the picture, above 0 and finite: alpha and sigma must be "
                f"positive at every timestep; got a schedule down to alpha {schedule.alpha.min():.3g} and "
                f"sigma {schedule.sigma.min():.3g}"
            )
        self.network, self.image_channels, self.classes = network, channels, classes
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return self.network

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Return the classes that `prompts` number; nothing for a model without classes.

        Raises ValueError if a prompt is not the number of a class.
        """
        if not self.classes:
            return Condition()
        for prompt in prompts:
            if not (prompt.isdecimal() and int(prompt) < self.classes):
                raise ValueError(f"{self.name} expects a class from 0 to {self.classes - 1}; got {prompt!r}")
        return Condition(labels=torch.tensor([int(prompt) for prompt in prompts], device=self.device))

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        wide = z_t.to(_precision(self.network, z_t))
        alpha, sigma = self.schedule.at(t, wide)
        level = (sigma / alpha).flatten().expand(len(wide))
        denoised = self.network(wide / alpha, level, self._vectors(condition, wide))
        return _same_shape(denoised, z_t, self.name)

    def _vectors(self, condition: Condition | None, like: Latents) -> ClassVectors | None:
        if not self.classes:
            return None
        labels = None if condition is None else condition.expand(len(like)).labels
        if labels is None:
            raise ValueError(
                f"{self.name} needs a class: pass model.condition(['3']) for class 3, for example"
            )
        return one_hot(labels, self.classes).to(like)


class Preconditioned(nn.Module):
    """The denoiser around a raw network `F(x, c_noise, class_labels)` (Karras et al., 2022, table 1).

    `D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`: whatever the level, the network sees and answers
    numbers of about unit variance. `sigma_data` is the standard deviation of the data in [-1, 1], as trained.

    Raises ValueError for a `sigma_data` that is not positive.
    """

    def __init__(self, network: nn.Module, *, sigma_data: float = 0.5) -> None:
        super().__init__()
        if not sigma_data > 0:
            raise ValueError(f"sigma_data is a standard deviation, above 0; got {sigma_data}")
        self.network, self.sigma_data = network, sigma_data

    def forward(self, x: Latents, sigma: NoiseLevels, class_labels: ClassVectors | None = None) -> Latents:
        level = sigma.view(-1, 1, 1, 1)
        total = level.square() + self.sigma_data**2
        skip, out = self.sigma_data**2 / total, level * self.sigma_data * total.rsqrt()
        return skip * x + out * self.network(x * total.rsqrt(), sigma.log() / 4, class_labels)


class ScoreSDE(PixelSpace):
    """A VP network of Song et al. (2021, ICLR, arXiv 2011.13456), trained over continuous time.

    It is called as `network(x, 999 * time)` with [-1, 1] pixels, one label for each picture, and answers
    the noise: its score is that answer divided by `-sigma`. The schedule is the VP-SDE's own,
    `NoiseSchedule.vp_sde()`, not DDPM's: `t` steps into the noise, at timestep `t - 1`, is the time
    `t / 1000`. Networks of the VE and sub-VP equations are something else.
    """

    fixed_size = True

    def __init__(
        self, network: nn.Module, *, name: str, side: int, channels: int = 3, multiple: int | None = None
    ) -> None:
        """Wrap a network, and freeze it; the arguments are those of `EDM`.

        Raises ValueError for a side or multiple that is not positive.
        """
        super().__init__(
            NoiseSchedule.vp_sde(clip=1.0),
            prediction="epsilon",
            name=name,
            multiple=_positive(side if multiple is None else multiple, "multiple"),
            latent_channels=channels,
            comfortable=_positive(side, "side"),
        )
        self.network, self.image_channels = network, channels
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return self.network

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Return nothing: these networks are told nothing."""
        return Condition()

    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        wide = z_t.to(_precision(self.network, z_t))
        time = (t.to(wide.dtype) + 1) / len(self.schedule)
        return _same_shape(self.network(wide, 999 * time.expand(len(wide))), z_t, self.name)


def _precision(network: nn.Module, like: Tensor) -> torch.dtype:
    """The dtype to call a network in; labels and levels would be wrong in half precision."""
    tensor = next(chain(network.parameters(), network.buffers()), like)
    return torch.promote_types(tensor.dtype, torch.float32)


def _same_shape(output: Tensor, z_t: Latents, name: str) -> Latents:
    if output.shape != z_t.shape:
        raise ValueError(
            f"the network of {name} was given pictures of shape {tuple(z_t.shape)} and must return the same; "
            f"got {tuple(output.shape)}"
        )
    return output.to(z_t.dtype)


def _positive(value: int, what: str) -> int:
    if value < 1:
        raise ValueError(f"the {what} is a number of pixels, at least 1; got {value}")
    return value
