"""What people ask for in words, and what that is in methods, numbers and models."""

from dataclasses import dataclass, replace

from torch.nn import functional as F

from diffusion.known import KNOWN
from diffusion.load import available
from imaging.picture import Picture
from protect.cli import STRENGTHS as LEVELS
from protect.collective import CollectiveMethod
from protect.command.batch import Recipe
from protect.command.session import recipe_for
from protect.frames import Where
from protect.method import ProtectionMethod
from protect.methods import METHODS, create
from protect.surrogate import TINY, Surrogates, choose_for

AUTO = "auto"
AS_ABOVE = "as chosen above"


@dataclass(frozen=True)
class Purpose:
    """Something that a person wants to be hard."""

    words: str
    method: str
    """The method that serves it, by name."""


PURPOSES: dict[str, Purpose] = {
    "style": Purpose("Learning my style or my work from it", "mist"),
    "editing": Purpose("Changing the picture by a prompt", "mist-textural"),
    "portrait": Purpose("Keeping my face and repainting the rest (you paint the face)", "diffusionguard"),
    "instant": Purpose("Changing it, and I have no time: one moment per picture, weaker", "instant"),
}

_STRENGTHS = {
    "light": "Light: hardly to be seen",
    "standard": "Standard: visible in flat parts when looked for",
    "strong": "Strong: visible as a fine grain",
    "max": "Most: plainly visible, hardest to undo",
}
STRENGTHS = {name: (_STRENGTHS[name], level) for name, level in LEVELS.items()}
"""Words, and the command's levels of 255."""

HANDLING = {"jpeg": "saving as JPEG", "resize": "being made smaller", "blur": "a little blur"}

SKETCH_SIDE = 128
"""Of the part that a sketch is made of."""
_SKETCH_STEPS = 8


@dataclass(frozen=True, eq=False)
class Wish:
    """One filled-in page."""

    purpose: str = "style"
    strength: str = "standard"
    method: str = AS_ABOVE
    model: str = AUTO
    steps: int | None = None
    """None for the method's own."""
    survive: tuple[str, ...] = ()
    mask: Where | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """The method's name in the table."""
        return PURPOSES[self.purpose].method if self.method == AS_ABOVE else self.method

    @property
    def made(self) -> ProtectionMethod:
        """The method with its settings. Raises ValueError for settings that it refuses."""
        settings: dict[str, object] = {"eps": STRENGTHS[self.strength][1] / 255}
        if self.steps:
            settings["steps"] = self.steps
        if self.survive:
            settings["survive"] = self.survive
        return create(self.name, **settings)


def recipe_of(wish: Wish) -> tuple[Recipe, Surrogates]:
    """Return what a wish comes to, and the models that it needs, chosen among those on this computer.

    Raises ValueError with a sentence for what cannot be done.
    """
    method = wish.made
    surrogates = choose_for(method, wish.model, offline=True)
    recipe = recipe_for(wish.name, method, surrogates, mask=wish.mask, seed=wish.seed, precision="auto")
    return recipe, surrogates


def models_here(*, denoiser: bool = False) -> list[tuple[str, str]]:
    """Return words and names of the models on this computer, the automatic choice first.

    With `denoiser` autoencoders alone are left out, and models of plain pixels are not.
    """
    kinds = {"latent", "flow", "pixel"} if denoiser else {"latent", "flow", "inpainting", "autoencoder"}
    here = [
        (f"{name}: {row.protects}", name)
        for name, row in KNOWN.items()
        if row.kind in kinds and available(name, denoiser=row.kind != "autoencoder")
    ]
    tiny = [("tiny: small autoencoders of four model families together", "tiny")]
    together = not denoiser and all(available(name, denoiser=False) for name in TINY)
    return [("the best that is on this computer", AUTO), *(tiny if together else []), *here]


def sketch_of(wish: Wish) -> tuple[ProtectionMethod, bool]:
    """Return a method of the same strength that is quick on a small part, and whether it is the wished one.

    Methods that need a mask or several pictures, or train models, are sketched by another one.
    """
    method = wish.made
    quick = not (method.needs_mask or isinstance(method, CollectiveMethod)) and _plain(method)
    if not quick:
        method = create("mist-textural", eps=method.eps)
    if method.origin is not None:
        return method, quick
    # As far as the whole way would lead, in fewer and longer steps.
    step = max(method.step_size, 2.5 * method.eps / _SKETCH_STEPS)
    return replace(method, steps=_SKETCH_STEPS, step_size=step, survive=()), quick


def _plain(method: ProtectionMethod) -> bool:
    return type(method).protect is ProtectionMethod.protect or method.origin is not None


def mask_from(painted: Picture, height: int, width: int) -> Where | None:
    """Return where something was painted on a sheet, at the size of the picture below; None if nowhere."""
    if painted.alpha is None:
        return None
    opacity = painted.alpha[:1].float() / painted.levels
    where = F.interpolate(opacity.reshape(1, 1, painted.height, painted.width), (height, width)) > 0.25
    return where if where.any() else None


def names_of_methods() -> list[tuple[str, str]]:
    """Return words and names of all methods, the choice by purpose first."""
    return [
        (AS_ABOVE, AS_ABOVE),
        *((f"{name}: {entry.summary}", name) for name, entry in METHODS.items()),
    ]
