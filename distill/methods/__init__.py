"""The methods of robust training, each with its paper's defaults.

Attacks run in evaluation mode unless a configuration says otherwise; the released code of ARD, IAD, ADR and
AWP runs them in training mode, which moves figures by about half a point.
"""

from distill.methods.adversarial import Mart, Natural, PgdAt, Trades
from distill.methods.distillation import AdaAd, Ard, Iad, IadTwo
from distill.methods.gradients import GradAlign, Guard
from distill.methods.labels import Adr, DefensiveDistillation, Ltd, SoftLabels
from distill.methods.rslad import ProArd, Rslad
from distill.methods.shifts import Dad, Hard
from distill.methods.two_teachers import BMtard, Mtard

__all__ = [
    "AdaAd",
    "Adr",
    "Ard",
    "BMtard",
    "Dad",
    "DefensiveDistillation",
    "GradAlign",
    "Guard",
    "Hard",
    "Iad",
    "IadTwo",
    "Ltd",
    "Mart",
    "Mtard",
    "Natural",
    "PgdAt",
    "ProArd",
    "Rslad",
    "SoftLabels",
    "Trades",
]
