"""The surrogate that everything shares: a frozen generative prior over pictures.

A network may say the noise, the clean picture or a velocity; `to_clean` and `to_noise` translate, and
nothing outside this module asks which one it is.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Literal, Self, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusion.frozen import make_lean
from diffusion.schedule import Coefficients, Latents, NoiseSchedule, Timesteps

Images = Float[Tensor, "batch 3 height width"]
Tokens = Float[Tensor, "n length dim"]
Pooled = Float[Tensor, "n dim"]
Rows = Float[Tensor, "n length dim"]
Labels = Int[Tensor, " n"]
Masks = Float[Tensor, "n 1 height width"]
Level = Coefficients | float
Prediction = Literal["epsilon", "v", "sample", "flow"]


class NoDenoiserError(TypeError):
    """An autoencoder alone was asked to denoise."""


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told beside the noisy picture. Each part holds one row, or one for each element."""

    tokens: Tokens | None = None
    """Text embeddings, attended to."""
    pooled: Pooled | None = None
    """One embedding of the whole text."""
    concat: Latents | None = None
    """Channels appended to `z_t`: a mask and the visible part's latent, or an image to follow."""
    labels: Labels | Pooled | None = None
    """Class numbers, or one embedding of the class in the place of each."""

    def expand(self, batch: int) -> "Condition":
        """Return this condition with `batch` rows, without copying.

        Raises ValueError if it holds several rows that are not `batch`.
        """
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Condition(**{name: _rows(part, batch, name) for name, part in parts.items()})


def _rows(part: Tensor | None, batch: int, name: str) -> Tensor | None:
    if part is None or len(part) == batch:
        return part
    if len(part) != 1:
        raise ValueError(
            f"the condition's {name} holds {len(part)} rows; expected 1 or the batch size, {batch}"
        )
    return part.expand(batch, *part.shape[1:])


def to_clean(prediction: Prediction, output: Latents, z_t: Latents, alpha: Level, sigma: Level) -> Latents:
    """Return the clean `z` that a network's `output` implies; infinite for "epsilon" where alpha is 0."""
    match prediction:
        case "epsilon":
            return (z_t - sigma * output) / alpha
        case "v":
            return alpha * z_t - sigma * output
        case "sample":
            return output
        case "flow":
            return z_t - sigma * output


def to_noise(prediction: Prediction, output: Latents, z_t: Latents, alpha: Level, sigma: Level) -> Latents:
    """Return the noise that a network's `output` implies; infinite for "sample" where sigma is 0."""
    match prediction:
        case "epsilon":
            return output
        case "v":
            return alpha * output + sigma * z_t
        case "sample":
            return (z_t - alpha * output) / sigma
        case "flow":
            return z_t + alpha * output


class DiffusionModel(nn.Module, ABC):
    """A frozen generative prior. Images are [0, 1]; `z` is what it denoises: pixels or scaled latents.

    Parameters never require gradients and the model stays in evaluation, so that gradients flow to pictures
    only. They may be bfloat16 or float16: tensors come and go in the caller's precision, float32 as a rule.
    Autocast is the caller's business. Concrete classes end their constructor with `self.freeze()`.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    """What the network says: "epsilon" the noise, "v" the velocity of Salimans and Ho (2022, arXiv
    2202.00512), "sample" the clean z, "flow" noise minus clean."""
    name: str
    multiple: int
    """Heights and widths of images are multiples of this, in pixels."""
    latent_channels: int
    comfortable: int
    """The largest image side that the model was made for, in pixels."""
    image_channels: int = 3
    fixed_size: bool = False
    """Whether images much smaller or larger than `comfortable` make no sense to it, as to pixel models."""
    has_denoiser: bool = True
    inpaints: bool = False
    """Whether the denoiser expects a condition from `inpainting`."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        *,
        prediction: Prediction,
        name: str,
        multiple: int,
        latent_channels: int,
        comfortable: int,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(
                f"unknown prediction {prediction!r}; available: {', '.join(get_args(Prediction))}"
            )
        self.schedule, self.prediction, self.name = schedule, prediction, name
        self.multiple, self.latent_channels, self.comfortable = multiple, latent_channels, comfortable
        self._frozen = True
        self._unprompted: tuple[torch.device, Condition] | None = None

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network that `predict` runs.

        Raises NoDenoiserError for an autoencoder alone.
        """

    @abstractmethod
    def encode(self, images: Images) -> Latents:
        """Return the `z` of images: the posterior mean, shifted and scaled; differentiable.

        Raises ValueError if the images' sides are not multiples of `multiple`.
        """

    @abstractmethod
    def decode(self, z: Latents, *, clamp: bool = True) -> Images:
        """Return images of `z`; `clamp=False` keeps the gradient of entries outside [0, 1]."""

    @abstractmethod
    def predict(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        """Return the network's raw output, in the terms of `prediction`; None stands for the empty prompt.

        Raises NoDenoiserError for an autoencoder alone.
        """

    @abstractmethod
    def condition(self, prompts: Sequence[str]) -> Condition:
        """Return what the denoiser is told for each prompt, `""` being the absence of one."""

    def rows(self, prompts: Sequence[str]) -> Rows:
        """Return the embeddings that the prompts' tokens, or the class, are looked up as.

        They may be changed and handed to `condition(prompts, rows=…)`; gradients reach them from there.

        Raises ValueError for a model that is not told anything, or by other means.
        """
        raise ValueError(f"{self.name} looks up no embedding of a prompt")

    def inpainting(self, condition: Condition, images: Images, mask: Masks) -> Condition:
        """Return `condition` with what an inpainting denoiser sees of `images`: all but where `mask` is 1.

        Raises ValueError for a model that is not made for inpainting; `samplers.inpaint` works on any.
        """
        raise ValueError(
            f"{self.name} is not made for inpainting: load an inpainting model, such as 'sd15-inpainting'"
        )

    def predict_noise(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        """Return the noise that the model believes to be in `z_t`."""
        return to_noise(self.prediction, self.predict(z_t, t, condition), z_t, *self.schedule.at(t, z_t))

    def predict_clean(self, z_t: Latents, t: Timesteps, condition: Condition | None = None) -> Latents:
        """Return the clean `z` that the model believes to be behind `z_t`."""
        return to_clean(self.prediction, self.predict(z_t, t, condition), z_t, *self.schedule.at(t, z_t))

    def target(self, z: Latents, noise: Latents, t: Timesteps) -> Latents:
        """Return what `predict` should have said about `z` noised with `noise` at `t`."""
        match self.prediction:
            case "epsilon":
                return noise
            case "sample":
                return z
            case "flow":
                return noise - z
            case "v":
                alpha, sigma = self.schedule.at(t, z)
                return alpha * noise - sigma * z

    def told(self, condition: Condition | None, batch: int) -> Condition:
        """Return `condition` for a batch of this size, with the empty prompt's text where it holds none."""
        if condition is None or condition.tokens is None:
            extra = condition.concat if condition else None
            condition = replace(self._empty_prompt(), concat=extra)
        return condition.expand(batch)

    def _empty_prompt(self) -> Condition:
        if self._unprompted is None or self._unprompted[0] != self.device:
            # kept for later calls, which may need gradients even if this one is under inference mode
            with torch.inference_mode(False), torch.no_grad():
                self._unprompted = (self.device, self.condition([""]))
        return self._unprompted[1]

    def check_sides(self, images: Images) -> None:
        """Raise ValueError unless both sides of the images are multiples of `multiple`."""
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"{self.name} takes images whose sides are multiples of {self.multiple}; "
                f"got {height}x{width}: pad them first"
            )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._any_tensor().device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the parameters; of the denoiser where there is one."""
        return self._any_tensor().dtype

    def _any_tensor(self) -> Tensor:
        module = self.denoiser if self.has_denoiser else self
        return next(chain(module.parameters(), module.buffers()))

    def freeze(self) -> Self:
        """Stop all weight gradients and training behaviour, such as dropout."""
        self._frozen = True
        make_lean(self)
        # Half-precision convolutions want channels last: the built-in encoder takes half the time on a CPU.
        return self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Self:
        """Do nothing on a frozen model, however often a surrounding module is switched to training."""
        return super().train(mode and not self._frozen)

    def twin(self, *shared: Tensor) -> Self:
        """Return a model with a denoiser of its own that has `shared` in common with this one's.

        Everything beside the denoiser is shared.
        """
        others = [module for module in self.children() if module is not self.denoiser]
        return copy.deepcopy(self, {id(each): each for each in [*others, self.schedule, *shared]})

    def trainable_copy(self) -> Self:
        """Return a model with a trainable copy of the denoiser, in training mode.

        Everything else is shared and stays frozen. The copy keeps its precision: before training one in
        half precision, call `.denoiser.float()`.
        """
        twin = self.twin()
        twin._frozen = False
        twin.denoiser.requires_grad_(True).train()
        return twin

    def enable_checkpointing(self) -> Self:
        """Recompute activations in the backward pass: much less memory for about a third more time.

        Networks that cannot are left as they are.
        """
        for module in self.modules():
            if getattr(module, "_supports_gradient_checkpointing", False):
                cast(Any, module).enable_gradient_checkpointing()
        return self


class PixelSpace(DiffusionModel):
    """A model whose `z` are the pixels themselves in [-1, 1]; abstract."""

    def encode(self, images: Images) -> Latents:
        self.check_sides(images)
        return 2 * images - 1

    def decode(self, z: Latents, *, clamp: bool = True) -> Images:
        images = (z + 1) / 2
        return images.clamp(0, 1) if clamp else images
