"""Attacks of other libraries by name, behind one signature and with their known faults kept out.

torchattacks (Kim, 2020, arXiv 2010.01950) and AutoAttack (Croce and Hein, 2020, arXiv 2003.01690) are
imported when an attack of theirs is asked for; both come with the extra `robustness`.
"""

import inspect
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from attacks.apgd import apgd
from attacks.ball import L2, Ball, Images, Linf
from attacks.evaluate import Attack
from attacks.losses import Labels
from attacks.objectives import cross_entropy
from attacks.pgd import pgd

OWN = ("pgd", "apgd")
FAITHFUL: dict[str, dict[str, Any]] = {
    "APGD": {"steps": 100},
    "APGDT": {"steps": 100},
    "FAB": {"steps": 100},
    "Square": {"resc_schedule": False},
    "SPSA": {"nb_iter": 20},
    "EOTPGD": {"eot_iter": 20},
    "DIFGSM": {"decay": 1.0},
    "TIFGSM": {"decay": 1.0},
}
"""Where torchattacks' defaults are not those of the attack's paper."""


class MissingLibraryError(ImportError):
    """A library that an attack comes from is not installed."""


def attack(
    name: str, model: nn.Module, *, eps: float = 8 / 255, norm: str = "Linf", **options: Any
) -> Attack:
    """Return the attack of this name on a classifier, a function of images and labels that returns images.

    What comes back lies in the ball and in [0, 1] exactly, also where the library's arithmetic leaves it.

    Args:
        name: "pgd" and "apgd", ours; "autoattack"; or a class of torchattacks, in any case of letters.
        model: a classifier of images in [0, 1] that returns logits.
        eps: radius, images being in [0, 1].
        norm: "Linf" or "L2".
        options: handed to the attack: `steps`, `alpha`, …; for "autoattack" `version` "standard" (the
            default), "plus" or "rand", `attacks`, those of its parts that run, such as ("apgd-ce",
            "apgd-t"), and `batch_size`.

    Raises:
        ValueError: for an unknown name, norm or option, or AutoAttack's deterministic versions on a
            classifier that is random.
        MissingLibraryError: when the library is not installed.
    """
    balls: dict[str, Ball] = {"Linf": Linf(eps), "L2": L2(eps)}
    if norm not in balls:
        raise ValueError(f"norm must be 'Linf' or 'L2'; got {norm!r}")
    ball = balls[norm]
    key = name.lower()
    if key == "pgd":
        return _own_pgd(model, ball, eps, **options)
    if key == "apgd":
        return lambda images, labels: apgd(cross_entropy(model, labels), images, ball, eps=eps, **options)
    if key == "autoattack":
        run, bounded = _autoattack(model, eps, norm, **options), True
    else:
        kind = _class_of(name)
        # minimum-norm attacks know no radius: their result is the nearest they found
        run, bounded = _torchattack(kind, model, eps, norm, options), "eps" in _parameters(kind)

    def attacked(images: Images, labels: Labels) -> Images:
        found = run(images, labels).detach().to(images)
        delta = ball.project(found - images) if bounded else found - images
        return (images + delta).clamp(0, 1)

    return attacked


def _own_pgd(
    model: nn.Module,
    ball: Ball,
    eps: float,
    *,
    steps: int = 20,
    step_size: float | None = None,
    random_start: bool = True,
) -> Attack:
    length = eps / 4 if step_size is None else step_size
    return lambda images, labels: pgd(
        cross_entropy(model, labels), images, ball, steps=steps, step_size=length, random_start=random_start
    )


def _torchattack(kind: Any, model: nn.Module, eps: float, norm: str, options: dict[str, Any]) -> Attack:
    known = _parameters(kind)
    given = dict(FAITHFUL.get(kind.__name__, {}))
    if "eps" in known:
        given["eps"] = eps
    if "norm" in known:
        given["norm"] = norm
    elif norm == "L2" and not kind.__name__.endswith("L2") and "eps" in known:
        raise ValueError(f"torchattacks' {kind.__name__} is an Linf attack; for L2 take PGDL2, or 'apgd'")
    wrong = [option for option in options if option not in known]
    if wrong:
        raise ValueError(f"{kind.__name__} has no option {wrong[0]!r}; available: {', '.join(known)}")
    made = kind(model, **{**given, **options})
    # its tanh coordinates are infinite at 0 and 1, where pixels would never move
    inside = 1e-4 if kind.__name__ == "CW" else 0.0
    return lambda images, labels: made(images.clamp(inside, 1 - inside), labels)


def _class_of(name: str) -> Any:
    try:
        import torchattacks
    except ImportError as error:
        raise MissingLibraryError(
            "this attack is torchattacks': install it with pip install 'vernis[robustness]'"
        ) from error
    classes = {
        key.lower(): value
        for key, value in vars(torchattacks).items()
        if inspect.isclass(value) and issubclass(value, torchattacks.attack.Attack) and key != "AutoAttack"
    }
    if name.lower() not in classes:
        near = get_close_matches(name.lower(), [*classes, *OWN, "autoattack"], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"unknown attack {name!r}; {hint}ours: {', '.join(OWN)}; autoattack; or a class of torchattacks"
        )
    return classes[name.lower()]


def _parameters(kind: Any) -> list[str]:
    return list(inspect.signature(kind.__init__).parameters)[2:]


def _autoattack(
    model: nn.Module,
    eps: float,
    norm: str,
    *,
    version: str = "standard",
    attacks: Sequence[str] | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> Attack:
    """AutoAttack as its authors publish it; torchattacks' class of that name runs a tenth of the steps."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise MissingLibraryError("AutoAttack is not installed: pip install 'vernis[robustness]'") from error

    def run(images: Images, labels: Labels) -> Images:
        with torch.no_grad():
            first, second = model(images[:4]), model(images[:4])
        if version != "rand" and not torch.equal(first, second):
            raise ValueError(
                f"AutoAttack's {version} version is not valid on a random classifier: it drops images after "
                "one lucky draw; take version='rand', or better Expected with apgd"
            )
        settings: dict[str, Any] = {"norm": norm, "version": version}
        made: Any = AutoAttack(model, eps=eps, device=images.device, seed=seed, **settings)
        if attacks is not None:
            wrong = [part for part in attacks if part not in made.attacks_to_run]
            if wrong:
                parts = ", ".join(made.attacks_to_run)
                raise ValueError(f"AutoAttack's {version} version has no part {wrong[0]!r}; it has {parts}")
            made.attacks_to_run = list(attacks)
        others = first.shape[1] - 1
        made.apgd_targeted.n_target_classes = min(made.apgd_targeted.n_target_classes, others)
        made.fab.n_target_classes = min(made.fab.n_target_classes, others)
        if others < 3:  # its DLR losses need four logits
            made.attacks_to_run = [kind for kind in made.attacks_to_run if kind not in ("apgd-t", "apgd-dlr")]
        with _traced_no_longer(), _quiet("auto-attack"):
            return made.run_standard_evaluation(images, labels, batch_size=batch_size)[0]

    return run


@contextmanager
def _traced_no_longer() -> Iterator[None]:
    """AutoAttack's check for optimisation loops takes over `sys.settrace`: debuggers and coverage go dark."""
    before = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    log = logging.getLogger(logger)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
