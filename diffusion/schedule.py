"""Noise schedules: how much picture and how much noise there is at each timestep.

Every family of models is described by two numbers per integer timestep, `z_t = alpha_t z + sigma_t noise`.
Diffusion models keep `alpha^2 + sigma^2 = 1` (Ho et al., 2020, arXiv 2006.11239); rectified flows keep
`alpha + sigma = 1` (Liu et al., 2022, arXiv 2209.03003). Timesteps run from 0 (almost clean) to
`len(schedule) - 1` (almost or entirely noise).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

Latents = Float[Tensor, "batch channels h w"]
Timesteps = Int[Tensor, " batch"]
Coefficients = Float[Tensor, "batch 1 1 1"]
Levels = Float[Tensor, " steps"]
Spacing = Literal["leading", "linspace", "trailing"]


@dataclass(frozen=True)
class ResolutionShift:
    """How a flow model moves its steps towards noise as pictures grow.

    See Esser et al. (2024, arXiv 2403.03206, eq. 23). The exponent is linear in the number of image tokens:
    `base` at `base_tokens`, `top` at `top_tokens`. A token covers two by two latent entries.
    """

    base: float = 0.5
    top: float = 1.15
    base_tokens: int = 256
    top_tokens: int = 4096

    def factor(self, size: tuple[int, int]) -> float:
        """Return what the odds of noise are multiplied by for latents of `size` (height, width)."""
        tokens = (size[0] // 2) * (size[1] // 2)
        slope = (self.top - self.base) / (self.top_tokens - self.base_tokens)
        return math.exp(self.base + slope * (tokens - self.base_tokens))


class Walk(TypedDict, total=False):
    """How samplers walk through a schedule; the keyword arguments of every `NoiseSchedule` constructor."""

    spacing: Spacing
    """Default of `NoiseSchedule.timesteps`."""
    offset: int
    """Default of `NoiseSchedule.timesteps`: the lowest timestep of leading and linspace spacing."""
    final: tuple[float, float]
    """The (alpha, sigma) at which DDIM ends: a clean picture, (1, 0), unless the model was used otherwise."""
    clip: float | None
    """Range to which samplers of pixel models clamp a predicted clean picture."""
    resolution_shift: ResolutionShift | None
    """For flow models whose steps depend on the size of the picture."""


class NoiseSchedule:
    """Signal and noise levels `alpha[T]` and `sigma[T]`, and how samplers walk through them.

    They are computed in float64 and held in float32. Raises ValueError if the two are not vectors of one
    length.
    """

    def __init__(
        self,
        alpha: Levels,
        sigma: Levels,
        *,
        spacing: Spacing = "leading",
        offset: int = 0,
        final: tuple[float, float] = (1.0, 0.0),
        clip: float | None = None,
        resolution_shift: ResolutionShift | None = None,
    ) -> None:
        if alpha.ndim != 1 or alpha.shape != sigma.shape:
            got = f"{tuple(alpha.shape)} and {tuple(sigma.shape)}"
            raise ValueError(f"alpha and sigma hold one number per timestep; got shapes {got}")
        self.alpha, self.sigma = alpha.float(), sigma.float()
        self.spacing, self.offset, self.final = spacing, offset, final
        self.clip, self.resolution_shift = clip, resolution_shift
        self._table = torch.stack([alpha.double(), sigma.double()])
        self._levels = list(zip(alpha.tolist(), sigma.tolist(), strict=True))
        self._placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def from_betas(cls, betas: Levels, **walk: Unpack[Walk]) -> Self:
        """Build a variance-preserving schedule from the variance of the noise added at each step."""
        signal = torch.cumprod(1 - betas.double(), dim=0)
        return cls(signal.sqrt(), (1 - signal).sqrt(), **walk)

    @classmethod
    def linear(
        cls, *, steps: int = 1000, start: float = 1e-4, end: float = 0.02, **walk: Unpack[Walk]
    ) -> Self:
        """Build DDPM's schedule (Ho et al., 2020): variances go linearly from `start` to `end`."""
        return cls.from_betas(torch.linspace(start, end, steps, dtype=torch.float64), **walk)

    @classmethod
    def scaled_linear(
        cls, *, steps: int = 1000, start: float = 0.00085, end: float = 0.012, **walk: Unpack[Walk]
    ) -> Self:
        """Build Stable Diffusion's schedule (Rombach et al., 2022, arXiv 2112.10752).

        Standard deviations go linearly. By default its samplers start one timestep late and DDIM ends at
        timestep 0, as they were released.
        """
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
        first = betas[0].item()
        released: Walk = {"offset": 1, "final": ((1 - first) ** 0.5, first**0.5), **walk}
        return cls.from_betas(betas, **released)

    @classmethod
    def cosine(cls, *, steps: int = 1000, **walk: Unpack[Walk]) -> Self:
        """Build the cosine schedule of improved DDPM (Nichol and Dhariwal, 2021, arXiv 2102.09672, eq.
        17)."""
        edges = torch.arange(steps + 1, dtype=torch.float64) / steps
        signal = torch.cos((edges + 0.008) / 1.008 * math.pi / 2).square()
        return cls.from_betas((1 - signal[1:] / signal[:-1]).clamp(max=0.999), **walk)

    @classmethod
    def vp_sde(
        cls, *, steps: int = 1000, start: float = 0.1, end: float = 20.0, **walk: Unpack[Walk]
    ) -> Self:
        """Build the levels of the continuous VP-SDE (Song et al., 2021, arXiv 2011.13456, appendix C).

        Its noise rate goes linearly from `start` to `end` over times 0 to 1, and timestep `t` stands for the
        time `(t + 1) / steps`. `linear` is its discrete twin: alpha differs by up to 0.001, too much to mix
        the two in one chain.
        """
        time = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        exponent = (end - start) * time.square() / 2 + start * time
        return cls((-exponent / 2).exp(), (-torch.expm1(-exponent)).sqrt(), **walk)

    @classmethod
    def rectified_flow(cls, *, shift: float = 1.0, steps: int = 1000, **walk: Unpack[Walk]) -> Self:
        """Build the straight path `z_t = (1 - sigma) z + sigma noise` of rectified flow models.

        Timestep `t` stands for `u = (t + 1) / steps`, and `shift` multiplies its odds of noise (3 in Stable
        Diffusion 3).
        """
        u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        sigma = shift * u / (1 + (shift - 1) * u)
        usual: Walk = {"spacing": "trailing", **walk}
        return cls(1 - sigma, sigma, **usual)

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> Self:
        """Read a diffusers scheduler: its levels, spacing, offset, last step and clipping.

        Raises ValueError for schedules that are neither built from betas nor flow matching.
        """
        config = scheduler.config
        if "FlowMatch" in type(scheduler).__name__:
            return cls._from_flow(config)
        if "beta_schedule" not in config:
            raise ValueError(
                f"noise levels of a {type(scheduler).__name__} are not supported; expected betas"
            )
        schedule = cls._from_betas(config)
        if config.get("rescale_betas_zero_snr"):
            schedule = schedule.with_zero_terminal_snr()
        if not config.get("set_alpha_to_one", True):
            schedule.final = schedule.level(0)
        return schedule

    @classmethod
    def _from_flow(cls, config: Any) -> Self:
        steps, shift = config["num_train_timesteps"], config["shift"]
        if config["use_dynamic_shifting"]:
            keys = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
            return cls.rectified_flow(
                steps=steps, resolution_shift=ResolutionShift(*(config[key] for key in keys))
            )
        # diffusers walks linearly down to a level that is already shifted, and then shifts the whole walk
        lowest = shift / (1 + (shift - 1) / steps)
        return cls.rectified_flow(shift=shift, steps=steps, spacing="linspace", offset=round(lowest) - 1)

    @classmethod
    def _from_betas(cls, config: Any) -> Self:
        spacing = config.get("timestep_spacing", "leading")
        walk: Walk = {
            "spacing": spacing,
            "offset": config.get("steps_offset", 0) if spacing == "leading" else 0,
            "final": (1.0, 0.0),
            "clip": config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None,
        }
        if config.get("trained_betas") is not None:
            return cls.from_betas(torch.as_tensor(config["trained_betas"]), **walk)
        named: dict[str, Callable[..., Self]] = {"linear": cls.linear, "scaled_linear": cls.scaled_linear}
        kind, steps = config["beta_schedule"], config["num_train_timesteps"]
        if kind in named:
            return named[kind](steps=steps, start=config["beta_start"], end=config["beta_end"], **walk)
        if kind == "squaredcos_cap_v2":
            return cls.cosine(steps=steps, **walk)
        raise ValueError(
            f"unknown beta schedule {kind!r}; available: linear, scaled_linear, squaredcos_cap_v2"
        )

    def with_zero_terminal_snr(self) -> Self:
        """Return this schedule stretched to end in pure noise (Lin et al., 2023, arXiv 2305.08891)."""
        alpha = self._table[0]
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        walk: Walk = {
            "spacing": self.spacing,
            "offset": self.offset,
            "final": self.final,
            "clip": self.clip,
            "resolution_shift": self.resolution_shift,
        }
        return type(self)(alpha, (1 - alpha.square()).sqrt(), **walk)

    def __len__(self) -> int:
        return len(self._levels)

    def __repr__(self) -> str:
        return f"NoiseSchedule({len(self)} timesteps, {self.spacing} spacing, offset {self.offset})"

    @property
    def alphas_cumprod(self) -> Levels:
        """The signal's share of the variance at each timestep, `alpha^2 / (alpha^2 + sigma^2)`, float32."""
        return (self._table[0].square() / self._table.square().sum(0)).float()

    def level(self, t: int) -> tuple[float, float]:
        """Return (alpha, sigma) at one timestep as Python floats, without waiting for a device."""
        return self._levels[t]

    def at(self, t: Timesteps, like: Latents) -> tuple[Coefficients, Coefficients]:
        """Return alpha and sigma of each element, to multiply tensors of the place and dtype of `like`."""
        place = (like.device, like.dtype)
        if place not in self._placed:
            self._placed[place] = self._table.to(*place)
        alpha, sigma = self._placed[place][:, t]
        return alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)

    def add_noise(self, z: Latents, noise: Latents, t: Timesteps) -> Latents:
        """Return `z_t = alpha_t z + sigma_t noise`."""
        alpha, sigma = self.at(t, z)
        return alpha * z + sigma * noise

    def timesteps(
        self,
        steps: int,
        *,
        spacing: Spacing | None = None,
        offset: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[int]:
        """Return `steps` timesteps from noisy to clean, spaced as diffusers' schedulers space them.

        "leading" takes multiples of `len(schedule) // steps` above `offset`; "linspace" goes evenly from
        the last timestep to `offset`; "trailing" counts down evenly from the last one (Lin et al., 2023,
        table 2). `spacing` and `offset` default to the schedule's own. `size`, the (height, width) of the
        latents, matters only to models that shift their steps by resolution.

        Raises ValueError if `steps` is not between 1 and `len(schedule)` or `spacing` is unknown.
        """
        total, own = len(self), spacing in (None, self.spacing)
        if not 1 <= steps <= total:
            raise ValueError(f"expected between 1 and {total} sampling steps; got {steps}")
        if offset is None:
            offset = self.offset if own else 0
        chosen = _spaced(total, steps, spacing or self.spacing, offset)
        if self.resolution_shift is not None and size is not None:
            factor = self.resolution_shift.factor(size)
            chosen = [round(total * factor / (factor + total / (t + 1) - 1)) - 1 for t in chosen]
        return chosen

    def lowest(self, t: int, steps: int) -> list[int]:
        """Return `{t / n, 2 t / n, ..., t} - 1` for n `steps`, from noisy to clean: part of the way back.

        `t` counts steps into the noise. Raises ValueError for a `t` outside the schedule, or more steps than
        `t`.
        """
        if not 1 <= t <= len(self):
            raise ValueError(f"t counts steps into the noise, from 1 to {len(self)}; got {t}")
        if not 1 <= steps <= t:
            raise ValueError(f"the way back from t = {t} takes 1 to {t} steps; got {steps}")
        return [round(t * number / steps) - 1 for number in range(steps, 0, -1)]


def _spaced(total: int, steps: int, spacing: str, offset: int) -> list[int]:
    if spacing == "leading":
        stride = total // steps
        offset = min(offset, total - 1 - (steps - 1) * stride)
        return [offset + stride * i for i in reversed(range(steps))]
    if spacing == "linspace":
        offset = min(offset, total - steps) if steps > 1 else total - 1
        stride = (total - 1 - offset) / max(steps - 1, 1)
        return [round(offset + stride * i) for i in reversed(range(steps))]
    if spacing == "trailing":
        return [round(total - total / steps * i) - 1 for i in range(steps)]
    raise ValueError(f"unknown timestep spacing {spacing!r}; available: leading, linspace, trailing")
