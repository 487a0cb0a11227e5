"""What may be said about a protection, and what may not: one line for each, beside every result."""

from dataclasses import dataclass

from diffusion.choice import Choice
from diffusion.known import KNOWN
from protect.methods import METHODS

NO_GUARANTEE = "raises the cost of misuse; does not guarantee"


@dataclass(frozen=True)
class Promise:
    """Two halves of one honest sentence."""

    against: str
    """What the protection is aimed at."""
    not_against: str
    """What it is not known to withstand."""


def promise(method: str, *models: str) -> Promise:
    """Return what a method of the table, made against one or more models, is aimed at and leaves open."""
    guards = METHODS[method.lower()].guards
    if all(model in KNOWN and KNOWN[model].hub is None and KNOWN[model].kind != "pixel" for model in models):
        return Promise(
            f"{guards}. The built-in model is small: it aims at the structure shared by latent autoencoders",
            "carry-over to Stable Diffusion or FLUX is not shown, and purification may remove it",
        )
    reach = "; ".join(dict.fromkeys(map(_reach, models)))
    with_which = "With this model" if len(models) == 1 else "With these models together"
    return Promise(
        f"{guards}. {with_which}: {reach}",
        "carry-over to models with another autoencoder is not shown, and purification may remove it",
    )


def _reach(model: str) -> str:
    name = Choice(model).label
    return KNOWN[model].protects if model in KNOWN else f"what {name!r} and models with its autoencoder do"
