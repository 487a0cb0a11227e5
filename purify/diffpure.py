"""DiffPure: drown a perturbation in noise, then let a diffusion model bring the picture back."""

from collections.abc import Sequence

from diffusion.model import Condition, DiffusionModel
from diffusion.schedule import Latents
from imaging.tiles import crop_padding, pad_to_multiple
from purify.methods import unknown
from purify.purifier import Draw, Images, Move, Purifier
from purify.reverse import REVERSES, walk

Rounds = Sequence[tuple[int, int]]

PRESETS: dict[str, Rounds] = {
    "gradual-cifar": [(30, 30)] * 4 + [(50, 50)] * 2 + [(125, 125)] * 2,
    "gradual-svhn": [(30, 30)] * 4 + [(50, 50)] * 2 + [(80, 80)] * 2,
    "gradual-imagenet": [(30, 30)] * 4 + [(50, 50)] * 2 + [(200, 200)] * 2,
}
"""Rounds (t, steps) of Lee and Kim (2023, ICCV, arXiv 2303.09051)."""


class DiffPure(Purifier):
    """Noise images `t` steps into the schedule and denoise them (Nie et al., 2022, ICML, arXiv 2205.07460).

    Works with any `DiffusionModel`; with a latent one it is the latent round trip. Images' sides are padded
    to the model's multiple and cropped again.
    """

    def __init__(
        self,
        model: DiffusionModel,
        *,
        t: int = 100,
        steps: int | None = None,
        rounds: int | Rounds = 1,
        sampler: str = "ddpm",
        condition: Condition | None = None,
        clamp: bool = True,
    ) -> None:
        """Build the chain.

        Args:
            model: the prior; its parameters are frozen.
            t: how many steps of the schedule to noise; 0 leaves images as they are.
            steps: network calls on the way back, at most `t`; as many as `t` by default.
            rounds: how often to do it, or a list of (t, steps) as in `PRESETS`, which replaces both.
            sampler: "ddpm", "ddim", "dpm-solver", or DiffPure's own "sde" and "ode".
            condition: what the model is told; nothing by default.
            clamp: end in [0, 1]; False keeps the gradient of saturated pixels.

        Raises:
            ValueError: for an unknown sampler, a `t` outside the schedule, or more steps than `t`.
        """
        super().__init__()
        if sampler not in REVERSES:
            raise ValueError(unknown("sampler", sampler, list(REVERSES)))
        if isinstance(rounds, int) and rounds < 1:
            raise ValueError(f"at least one round is needed; got {rounds}")
        self.model, self.sampler, self.condition, self.clamp = model, sampler, condition, clamp
        once = (t, t if steps is None else steps)
        self.rounds = [once] * rounds if isinstance(rounds, int) else list(rounds)
        for count, calls in self.rounds:
            if count:
                model.schedule.lowest(count, calls)

    def moves(self) -> list[Move]:
        chain: list[Move] = [self._encode]
        for t, steps in self.rounds:
            if t:
                chain += [self.noise_to(t), *self.reverse(t, steps)]
        return [*chain, self._decode]

    def levels(self) -> list[tuple[float, float] | None]:
        """Return the (alpha, sigma) that the state is at after each move; None where it is a picture."""
        found: list[tuple[float, float] | None] = [(1.0, 0.0)]
        for t, steps in self.rounds:
            if t:
                walked = walk(self.model, t, steps)
                found += [(walked[0].alpha, walked[0].sigma)]
                found += [(step.alpha_to, step.sigma_to) for step in walked]
        return [*found, None]

    def check(self, images: Images) -> None:
        super().check(images)
        check_size(self.model, images)

    def noise_to(self, t: int) -> Move:
        """Return the move that noises a clean z to `t` steps."""
        alpha, sigma = self.model.schedule.level(t - 1)

        def move(z: Latents, images: Images, draw: Draw) -> Latents:
            return alpha * z + sigma * draw(z)

        return move

    def reverse(self, t: int, steps: int) -> list[Move]:
        """Return the moves back from `t` steps."""
        return REVERSES[self.sampler](self.model, t, steps, self.condition)

    def _encode(self, state: Images, images: Images, draw: Draw) -> Latents:
        return self.model.encode(pad_to_multiple(state, self.model.multiple))

    def _decode(self, z: Latents, images: Images, draw: Draw) -> Images:
        return crop_padding(self.model.decode(z, clamp=self.clamp), *images.shape[-2:])

    def extra_repr(self) -> str:
        return f"rounds={self.rounds}, sampler={self.sampler!r}"


def check_size(model: DiffusionModel, images: Images) -> None:
    """Raise ValueError for images that a model of one size was not made for."""
    if not model.fixed_size:
        return
    if images.shape[1] != model.image_channels:
        raise ValueError(
            f"{model.name} knows images of {model.image_channels} channels; got {images.shape[1]}"
        )
    side, (height, width) = model.comfortable, images.shape[-2:]
    if max(height, width) > side or min(height, width) < side // 2:
        raise ValueError(
            f"{model.name} was made for images of {side}x{side}; got {height}x{width}: "
            f"wrap the purifier in Resized(…, {side}) or Tiled(…)"
        )
