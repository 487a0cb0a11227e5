"""Two reconstructions in the spirit of HAAD (ACM MM 2025, arXiv 2507.17554): attack the U-Net's middle.

The paper's code is not public and its loss could not be verified. What is here follows from its abstract
alone, and none of its figures stands for it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks import Objective, with_gradient
from attacks.ball import Images, Losses
from diffusion.features import bottleneck, features
from diffusion.finetune import attention_projections, train
from diffusion.losses import split_gradient
from diffusion.model import DiffusionModel, Latents
from protect.method import Mask, ProtectionMethod
from protect.methods.advdm import AdvDM
from protect.methods.alternating import AlternatingMethod, Learn
from protect.methods.draws import draw_noise


@dataclass(frozen=True)
class HSpace(ProtectionMethod):
    """Move what the U-Net's middle block says of the picture away from what it says of the original.

    Ascend `mean((h(z_t, t) - h(z0_t, t))^2)` with one noise for both, `h` being the middle block's output.
    The half of the network after it never runs.
    """

    paper: ClassVar[str] = "arXiv 2507.17554 (reconstruction)"

    prompt: str = "a photo of sks person"
    """Caption under which the model sees the picture; a thief's will differ."""
    random_start: bool = True
    """Begin at a random point of the ball: at the picture itself the distance has no gradient."""

    def check(self, model: DiffusionModel) -> None:
        super().check(model)
        bottleneck(model)

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
        middle = [bottleneck(model)[-2]]  # the last is the first block after the middle
        with torch.no_grad():
            z_clean = model.encode(images)

        def distance(perturbed: Images) -> Losses:
            with torch.no_grad():
                z = model.encode(perturbed)
            t, noise = draw_noise(model, z, generator)

            def said(latents: Latents) -> torch.Tensor:
                z_t = model.schedule.add_noise(latents, noise, t)
                return features(model, z_t, t, condition, layers=middle)[0].to(z.dtype)

            with torch.no_grad():
                clean = said(z_clean)
            value, gradient = split_gradient(lambda leaf: (said(leaf) - clean).square().flatten(1).mean(1), z)
            return with_gradient(model.encode(perturbed), gradient, value)

        return distance


@dataclass(frozen=True)
class HSpaceKV(AlternatingMethod):
    """Ascend the denoising loss while the middle block's keys and values learn the picture, a step each.

    Of all weights only the maps to keys and values of the attentions in the U-Net's middle are trained,
    in turn with the picture, as CAAT (Xu et al., CVPR 2024) does with those of all cross-attentions.
    """

    paper: ClassVar[str] = "arXiv 2507.17554 (reconstruction)"

    prompt: str = "a photo of sks person"
    """Caption under which the model sees and learns the picture; a thief's will differ."""
    learning_rate: float = 1e-5
    """Of the keys' and values' training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate < 0:
            raise ValueError(f"the learning rate must not be negative; got {self.learning_rate:g}")

    def check(self, model: DiffusionModel) -> None:
        super().check(model)
        _keys_and_values(model)

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

    def learns_after(self, step: int) -> bool:
        return True

    def pupil(self, model: DiffusionModel, generator: torch.Generator) -> tuple[DiffusionModel, Learn]:
        own = _keys_and_values(model)
        if model.dtype.itemsize < 4:  # in which small updates are lost
            twin = model.twin()
            twin.denoiser.float()
        else:
            twin = model.twin(*(p for name, p in model.denoiser.named_parameters() if name not in own))
        weights = [parameter for name, parameter in twin.denoiser.named_parameters() if name in own]
        condition = model.condition([self.prompt])
        optimiser = torch.optim.AdamW(weights, lr=self.learning_rate)

        def learn(z: Latents) -> None:
            train(
                twin,
                z,
                condition,
                parameters=weights,
                steps=1,
                learning_rate=self.learning_rate,
                optimiser=optimiser,
                generator=generator,
            )

        return twin, learn


def _keys_and_values(model: DiffusionModel) -> set[str]:
    """The names of the parameters that make keys and values in the middle of a U-Net."""
    bottleneck(model)
    names = [name for name in attention_projections(model) if name.startswith("mid_block.")]
    chosen = [name for name in names if name.endswith((".to_k", ".to_v"))]
    if not chosen:
        raise ValueError(f"the middle of {model.name} attends to nothing: take a model that is told a text")
    wanted = {f"{name}.{part}" for name in chosen for part in ("weight", "bias")}
    return wanted & {name for name, _ in model.denoiser.named_parameters()}
