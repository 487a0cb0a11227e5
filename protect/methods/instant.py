"""A trained network in the place of a search, after DiffVax (ICLR 2026) and GAP-Diff (NDSS 2025): what steps
of ascent would find for one picture, it has learned to say at once."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch

from attacks import NonFiniteError, Objective
from attacks.ball import Images
from diffusion.model import DiffusionModel
from protect.ensemble import Models, members
from protect.generator import Generator, Origin, from_folder
from protect.method import Mask, Progress, ProtectionMethod, networks_in
from protect.stand_in import StandIn
from protect.survival import Handling

BUILTIN = Path(__file__).parents[1] / "instant"


@dataclass(frozen=True)
class Instant(ProtectionMethod):
    """Move every value by `eps` times what the network says of it, a number in (-1, 1).

    The bound holds whatever the weights are. No surrogate is asked: what the network was trained against is
    in its folder, and with it what the protection is aimed at. Training, `experiments/instant.py`.
    """

    paper: ClassVar[str] = "after DiffVax, ICLR 2026"

    eps: float = 8 / 255
    """Largest change of any channel of any pixel, in units of the full range; the network that ships was
    trained at 4 to 16 of 255."""
    weights: str = "builtin"
    """Folder of a trained network; "builtin" is the one that ships, trained against the built-in model."""
    steps: int = 1
    """Without effect: the network runs once."""
    step_size: float = 1 / 255
    """Without effect: the network runs once."""
    prompt: str = "a photo"
    """Without effect on the protection; the caption of the edits that a sheet shows."""
    random_start: bool = False
    """Without effect: nothing is drawn."""
    survive: tuple[Handling, ...] = ()
    """None can be asked for: what the network lasts through was settled in its training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.survive:
            raise ValueError(
                "Instant cannot be asked to survive more: its network is trained; take a method with steps"
            )

    @property
    def needs_denoiser(self) -> bool:
        return False

    @property
    def origin(self) -> Origin:
        return _trained(self._folder)[1]

    @property
    def _folder(self) -> Path:
        return BUILTIN if self.weights == "builtin" else Path(self.weights).expanduser()

    def surrogates(self, models: Models) -> tuple[DiffusionModel, ...]:
        """Return a stand-in on the models' device, so that nothing of them has a part in the result."""
        return (StandIn().to(members(models)[0].device),)

    def objective(
        self,
        model: DiffusionModel,
        images: Images,
        *,
        target: Images,
        mask: Mask | None,
        generator: torch.Generator | None,
    ) -> Objective:
        raise TypeError("Instant ascends nothing: its network was trained; call protect")

    @torch.no_grad()
    def protect(
        self,
        images: Images,
        model: Models | None = None,
        *,
        mask: Mask | None = None,
        target: Images | None = None,
        generator: torch.Generator | None = None,
        precision: torch.dtype = torch.float32,
        callback: Progress | None = None,
    ) -> Images:
        """Perturb `images` within `eps`, one after the other; see `ProtectionMethod.protect`.

        `model`, `target` and `generator` are not used, and `callback` is called once, with scores of zero.

        Raises:
            diffusion.known.MissingWeightsError: the network is absent or damaged.
            attacks.NonFiniteError: the network overflowed in `precision`.
        """
        network, shape = _trained(self._folder)[0].to(images.device), self.shaping(images)
        with networks_in(precision, images.device):
            # One at a time: the fastest kernel, and with it the last digit, would depend on the batch.
            direction = torch.cat([network(image).to(images) for image in images.float().split(1)])
        if not direction.isfinite().all():
            raise NonFiniteError(f"the network of {self.weights!r} is not finite in {precision}")
        delta = self.eps * direction
        delta = delta if shape is None else shape(delta)
        perturbed = (images + (delta if mask is None else delta * mask)).clamp(0, 1)
        if callback is not None:
            callback(self.steps - 1, perturbed, perturbed.new_zeros(len(perturbed)))
        return perturbed


@lru_cache(maxsize=4)
def _trained(folder: Path) -> tuple[Generator, Origin]:
    return from_folder(folder)
