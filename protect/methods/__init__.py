"""The table of methods: a name, where its class lives, and the settings that make it this variant.

Strings, so that listing the methods imports nothing heavy.
"""

import difflib
import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protect.method import ProtectionMethod


class UnknownMethodError(ValueError):
    """A method name that is not in the table."""


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    path: str
    """`module:Class`."""
    summary: str
    """One line for people."""
    guards: str
    """What the method is meant against."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Field values that make this variant of the class."""


METHODS: dict[str, Entry] = {
    "ace": Entry(
        "protect.methods.ace:Ace",
        "pull the predicted noise to a target texture while adapters learn the picture",
        "training on the picture (LoRA above all), editing",
    ),
    "ace-plus": Entry(
        "protect.methods.ace:Ace",
        "ACE plus a pull of the latent to the texture",
        "training on the picture (LoRA above all), editing",
        {"latent_weight": 100.0},
    ),
    "advdm": Entry(
        "protect.methods.advdm:AdvDM",
        "make the picture hard to denoise",
        "training on the picture (textual inversion, LoRA), some editing",
    ),
    "advdm-minus": Entry(
        "protect.methods.advdm:AdvDM",
        "make the picture too easy to denoise: edits turn blurred",
        "editing",
        {"direction": -1},
    ),
    "aspl": Entry(
        "protect.methods.antidreambooth:ASPL",
        "Anti-DreamBooth: several pictures of one subject against a model that learns them meanwhile",
        "training on the pictures (DreamBooth, LoRA)",
    ),
    "atkpdm": Entry(
        "protect.methods.atkpdm:AtkPDM",
        "make a model of plain pixels see another picture inside; needs such a model, as cifar10",
        "editing with pixel-domain diffusion, which resists: little is promised",
    ),
    "dct-lattice": Entry(
        "protect.methods.dct:DctLattice",
        "push the latent to zero by a change that JPEG of one quality leaves alone; needs no denoiser",
        "editing, after JPEG above all",
    ),
    "diffusionguard": Entry(
        "protect.methods.diffusionguard:DiffusionGuard",
        "spoil the first step of an inpainting model; needs --mask",
        "repainting of all but what the mask shows white (inpainting)",
    ),
    "encoder-shift": Entry(
        "protect.methods.encoder_shift:EncoderShift",
        "move what encoders see early, to carry over to others; for several models, needs no denoiser",
        "editing, with models of other families too, as far as it carries over",
    ),
    "fsmg": Entry(
        "protect.methods.antidreambooth:FSMG",
        "Anti-DreamBooth: several pictures of one subject against a model that has learned it",
        "training on the pictures (DreamBooth, LoRA)",
    ),
    "hspace": Entry(
        "protect.methods.hspace:HSpace",
        "experimental reconstruction, not the authors' HAAD: change what the U-Net's middle says",
        "training on the picture, as far as an unverified reconstruction goes",
    ),
    "hspace-kv": Entry(
        "protect.methods.hspace:HSpaceKV",
        "experimental reconstruction, not the authors' HAAD-KV: train the middle's keys and values",
        "training on the picture, as far as an unverified reconstruction goes",
    ),
    "instant": Entry(
        "protect.methods.instant:Instant",
        "one pass of a trained network instead of steps; no model needed",
        "editing",
    ),
    "mist": Entry(
        "protect.methods.mist:Mist",
        "pull the latent towards a texture and make it hard to denoise",
        "editing and training on the picture",
    ),
    "mist-semantic": Entry(
        "protect.methods.mist:Mist",
        "the denoising half of Mist alone",
        "training on the picture",
        {"textural_weight": 0.0},
    ),
    "mist-textural": Entry(
        "protect.methods.mist:Mist",
        "the texture half of Mist alone; fastest, needs no denoiser",
        "editing",
        {"semantic_weight": 0.0},
    ),
    "photoguard": Entry(
        "protect.methods.photoguard:PhotoGuard",
        "push the latent to zero, as of a grey picture; needs no denoiser",
        "editing",
    ),
    "photoguard-diffusion": Entry(
        "protect.methods.photoguard_diffusion:PhotoGuardDiffusion",
        "turn a whole short inpainting to grey; slow, needs --mask",
        "repainting of all but what the mask shows white (inpainting)",
    ),
    "sds-minus": Entry(
        "protect.methods.sds:SDS",
        "score distillation downwards: edits turn blurred and featureless",
        "editing and training on the picture",
    ),
    "sds-plus": Entry(
        "protect.methods.sds:SDS",
        "score distillation upwards: AdvDM without the denoiser's Jacobian",
        "editing and training on the picture",
        {"direction": 1},
    ),
    "sdst-minus": Entry(
        "protect.methods.sds:SDST",
        "score distillation downwards plus a target texture",
        "editing and training on the picture",
    ),
    "sdst-plus": Entry(
        "protect.methods.sds:SDST",
        "score distillation upwards plus a target texture",
        "editing and training on the picture",
        {"direction": 1},
    ),
}


def create(name: str, **settings: Any) -> "ProtectionMethod":
    """Build the method called `name`; `settings` override its fields.

    Raises UnknownMethodError with the nearest name, and ValueError or TypeError for settings that the class
    refuses.
    """
    entry = METHODS.get(name.lower())
    if entry is None:
        near = difflib.get_close_matches(name.lower(), METHODS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise UnknownMethodError(f"unknown method {name!r}{hint} available: {', '.join(METHODS)}")
    module, _, attribute = entry.path.partition(":")
    return getattr(importlib.import_module(module), attribute)(**{**entry.settings, **settings})
