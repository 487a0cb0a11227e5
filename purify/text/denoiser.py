"""A small diffusion model of the hidden states that a text encoder ends in (DiffuseDef's denoiser)."""

import json
import math
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.schedule import NoiseSchedule

States = Float[Tensor, "batch tokens width"]
AttentionMask = Int[Tensor, "batch tokens"]
"""1 for a token and 0 for padding, as tokenizers return it."""
Timesteps = Int[Tensor, " batch"]
Losses = Float[Tensor, " batch"]


class StateDenoiser(nn.Module):
    """Predicts the noise in hidden states: one layer of BERT's, a time added, and two linear maps.

    The network of DiffuseDef (Li et al., ACL 2025, arXiv 2407.00248) with DDPM's linear schedule over
    `steps` timesteps: 30 in the paper, 10 for long texts. Nothing is clipped: hidden states lie far outside
    [-1, 1].
    """

    def __init__(
        self, width: int, *, heads: int | None = None, steps: int = 30, dropout: float = 0.1
    ) -> None:
        """Take the encoder's width, and its number of attention heads if that is not `width / 64`.

        Raises ValueError for an odd width or one that the heads do not divide.
        """
        super().__init__()
        heads = max(width // 64, 1) if heads is None else heads
        if width % 2 or width % heads:
            raise ValueError(f"the width must be even and a multiple of the heads; got {width} and {heads}")
        self.width, self.heads, self.steps, self.dropout = width, heads, steps, dropout
        self.schedule = NoiseSchedule.linear(steps=steps)
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.layer.dropout.p = 0.0  # BERT drops nothing between the two maps of its feed-forward part
        self.time = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.out = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, states: States, t: Timesteps, mask: AttentionMask | None = None) -> States:
        """Return the noise predicted in states at timesteps `t`, one for each text."""
        padding = None if mask is None else mask == 0
        hidden = self.layer(states, src_key_padding_mask=padding)
        return self.out(hidden + self.time(sinusoidal(t, self.width).to(states))[:, None])

    def save(self, folder: str | Path) -> None:
        """Write `denoiser.safetensors` and `denoiser.json` into a folder, which is made if it is absent."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"width": self.width, "heads": self.heads, "steps": self.steps, "dropout": self.dropout}
        (folder / "denoiser.json").write_text(json.dumps(settings, indent=2) + "\n")
        save_file({key: value.contiguous() for key, value in self.state_dict().items()}, _weights(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote; raises FileNotFoundError where it is not."""
        settings = json.loads((Path(folder) / "denoiser.json").read_text())
        made = cls(settings.pop("width"), **settings)
        made.load_state_dict(load_file(_weights(Path(folder))))
        return made


def _weights(folder: Path) -> Path:
    return folder / "denoiser.safetensors"


def sinusoidal(t: Timesteps, width: int) -> Float[Tensor, "batch width"]:
    """Return sines, then cosines, of `t` at frequencies falling geometrically from 1 to 1/10000."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / max(half - 1, 1))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def denoising_loss(
    denoiser: StateDenoiser,
    states: States,
    t: Timesteps,
    noise: States,
    mask: AttentionMask | None = None,
) -> Losses:
    """Return the mean squared error of the predicted noise, one per text, over its tokens without padding."""
    alpha, sigma = (level.view(-1, 1, 1) for level in denoiser.schedule.at(t, states))
    errors = (denoiser(alpha * states + sigma * noise, t, mask) - noise).square().mean(2)
    if mask is None:
        return errors.mean(1)
    return (errors * mask).sum(1) / mask.sum(1)
