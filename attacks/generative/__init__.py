"""Attacks that are made with a diffusion model: what they return are its pictures, not pictures plus noise.

The only attacks that know a model; none has a norm bound of its own, so judge them by the images they save.
"""

from attacks.generative.counterfactual import Ace, Counterfactual
from attacks.generative.features import AtkPdm, feature_distance, perceived
from attacks.generative.latent import LatentDiffAttack
from attacks.generative.prompt import PromptAttack, Prompted
from attacks.generative.sdedit import diff_pgd

__all__ = [
    "Ace",
    "AtkPdm",
    "Counterfactual",
    "LatentDiffAttack",
    "PromptAttack",
    "Prompted",
    "diff_pgd",
    "feature_distance",
    "perceived",
]
