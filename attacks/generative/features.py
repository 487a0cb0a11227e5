"""AtkPDM: move a picture until a pixel diffusion model sees another one in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from attacks.ball import Ball, Images
from attacks.losses import Losses
from attacks.objectives import Objective, normalised, value_and_gradient
from attacks.pgd import Callback
from diffusion.features import bottleneck, features, wasserstein
from diffusion.model import DiffusionModel
from diffusion.samplers import noised

Fidelity = Callable[[Images, Images], Losses]


def feature_distance(
    model: DiffusionModel,
    images: Images,
    *,
    times: tuple[int, int] = (0, 500),
    generator: torch.Generator | None = None,
) -> Objective:
    """Return the objective of AtkPDM (Shih et al., 2024, arXiv 2408.11810): to look unlike `images` inside.

    The features at the model's lowest resolution, of a picture and of `images` with the same noise at the
    same random time, are compared by their 2-Wasserstein distance as Gaussians
    (`diffusion.features.wasserstein`), summed over layers. Each call draws a time and a noise, which the
    batch shares.

    Raises ValueError for a model without a U-Net, or times that are no range of the schedule.
    """
    layers, (low, high) = bottleneck(model), times
    if not 0 <= low < high <= len(model.schedule):
        raise ValueError(f"times are a range within 0 and {len(model.schedule)}; got {low} to {high}")
    with torch.no_grad():
        clean = model.encode(images.detach())

    def objective(changed: Images) -> Losses:
        t = int(torch.randint(low, high, (1,), generator=generator))
        noise = torch.randn(clean[:1].shape, generator=generator, dtype=clean.dtype).to(clean)
        when = torch.full((len(changed),), t, device=changed.device)
        with torch.no_grad():
            theirs = features(model, noised(model.schedule, clean, noise, t), when, layers=layers)
        own = features(model, noised(model.schedule, model.encode(changed), noise, t), when, layers=layers)
        apart = changed.new_zeros(len(changed))
        for one, other in zip(theirs, own, strict=True):
            apart = apart + wasserstein(one, other)
        return apart

    return objective


def perceived(network: nn.Sequential, layers: Sequence[int] = (1, 6, 11, 18, 25)) -> Fidelity:
    """Return a distance of pictures in a classifier's layers, as AtkPDM keeps with VGG-16's.

    70e-5 times the sum of squared 2-Wasserstein distances. `network` takes images in [0, 1]; with
    torchvision's `vgg16(...).features` the default layers are the paper's.
    """
    last = max(layers)

    def distance(one: Images, other: Images) -> Losses:
        apart = one.new_zeros(len(one))
        for number, layer in enumerate(network[: last + 1]):
            one, other = layer(one), layer(other)
            if number in layers:
                apart = apart + 70e-5 * wasserstein(one, other)
        return apart

    return distance


@dataclass(frozen=True)
class AtkPdm:
    """Attack a pixel diffusion model, or a purifier made of one, by its features.

    Plain losses hardly move such models; features do. With an autoencoder (`codec`) the change is made in its
    latent, AtkPDM+, and looks natural. The method has no bound: give a `ball` for one, and report distances.
    Steps go along the sign of the gradient; then, while `fidelity` exceeds its bound, back to the original.
    """

    steps: int = 100
    """The release runs 2, for demonstration."""
    step_size: float = 0.5 / 255
    """Of the sign step, in the units of what is changed: images in [0, 1], or latents."""
    times: tuple[int, int] = (0, 500)
    """Timesteps at which features are compared."""
    fidelity_bound: float = 500.0
    """What `fidelity` may come to before the picture is led back."""
    fidelity_rounds: int = 10
    """How many steps back follow one step, at most."""
    limit: float = 2.0
    """Latents are kept within this; images within [0, 1]."""
    weight: float = 1.0
    """Weight of `objective` against the features, both gradients at a mean magnitude of 1."""

    def __call__(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        codec: DiffusionModel | None = None,
        fidelity: Fidelity | None = None,
        ball: Ball | None = None,
        objective: Objective | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Images:
        """Return images that the model sees otherwise.

        Args:
            model: whose features are attacked.
            images: float [batch, 3, height, width] in [0, 1].
            codec: an autoencoder whose latents are changed in the place of pixels.
            fidelity: distance to the original that is kept below `fidelity_bound`, such as `perceived`.
            ball: what the change of pixels is projected into.
            objective: a further objective, such as `attacks.adaptive.Expected` of a classifier behind the
                purifier with exact gradients.
            generator: of start, times and noises, which all images share.
            callback: called as `callback(step, images, losses)`; a true result ends the loop there.

        Raises:
            ValueError: for no steps, and what `feature_distance` raises.
        """
        if self.steps < 1:
            raise ValueError(f"at least one step is needed; got {self.steps}")
        images = images.detach()
        apart = feature_distance(model, images, times=self.times, generator=generator)
        picture, y = _variables(codec, images)
        y = y + 1e-4 * torch.randn(y[:1].shape, generator=generator, dtype=y.dtype).to(y)

        def ascend(values: Images) -> Losses:
            return apart(picture(values))

        for step in range(self.steps):
            losses, gradient = value_and_gradient(ascend, y)
            if objective is not None:
                _, other = value_and_gradient(lambda values: objective(picture(values)), y)
                gradient = normalised(gradient) + self.weight * normalised(other)
            y = self._kept(y + self.step_size * gradient.sign(), codec, images, ball)
            if fidelity is not None:
                y = self._led_back(y, picture, fidelity, codec, images, ball)
            if callback is not None:
                with torch.no_grad():
                    stop = callback(step, picture(y), losses)
                if stop:
                    break
        with torch.no_grad():
            made = picture(y)
        return made if ball is None else (images + ball.project(made - images)).clamp(0, 1)

    def _led_back(
        self,
        y: Images,
        picture: Callable[[Images], Images],
        fidelity: Fidelity,
        codec: DiffusionModel | None,
        images: Images,
        ball: Ball | None,
    ) -> Images:
        for _ in range(self.fidelity_rounds):
            far, gradient = value_and_gradient(lambda values: fidelity(picture(values), images), y)
            too_far = (far > self.fidelity_bound).view(-1, 1, 1, 1)
            if not too_far.any():
                break
            y = self._kept(y - too_far * self.step_size * gradient, codec, images, ball)
        return y

    def _kept(self, y: Images, codec: DiffusionModel | None, images: Images, ball: Ball | None) -> Images:
        if codec is not None:
            return y.clamp(-self.limit, self.limit)
        delta = y - images
        return (images + (delta if ball is None else ball.project(delta))).clamp(0, 1)


def _variables(codec: DiffusionModel | None, images: Images) -> tuple[Callable[[Images], Images], Images]:
    """Return how pictures are made of what is changed, and where that starts."""
    if codec is None:
        return lambda pixels: pixels, images
    with torch.no_grad():
        start = codec.encode(images)
    return lambda z: codec.decode(z), start
