"""What adversarially trained, deterministic classifiers reach: the rows beside which a purifier belongs."""

from typing import Any

NOT_ELIGIBLE = (
    "RobustBench ranks deterministic classifiers with useful gradients and no optimisation in the forward "
    "pass; a purifier is random, so it is not eligible there, and its figures are no rank."
)

_SOURCE = "RobustBench leaderboard, AutoAttack, all 10,000 test images"
_ROWS: tuple[tuple[str, str, float, float, float], ...] = (
    ("Standard, WRN-28-10", "Linf", 8, 94.78, 0.00),
    ("Carmon2019Unlabeled, WRN-28-10", "Linf", 8, 89.69, 59.53),
    ("Wang2023Better, WRN-28-10", "Linf", 8, 92.44, 67.31),
    ("Wang2023Better, WRN-70-16", "Linf", 8, 93.25, 70.69),
    ("Peng2023Robust, RaWRN-70-16", "Linf", 8, 93.27, 71.07),
    ("Bartoldson2024Adversarial, WRN-94-16", "Linf", 8, 93.68, 73.71),
    ("Wang2023Better, WRN-70-16", "L2", 0.5, 95.54, 84.97),
)


def baselines(norm: str = "Linf") -> list[dict[str, Any]]:
    """Return published CIFAR-10 rows: model, norm, eps (of 255 for Linf), clean and robust accuracy in %."""
    names = ("model", "norm", "eps", "clean_acc", "autoattack_acc")
    return [{**dict(zip(names, row, strict=True)), "source": _SOURCE} for row in _ROWS if row[1] == norm]
