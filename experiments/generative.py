"""Attacks made with a diffusion model, measured on the pictures that they save.

    python -m experiments.generative cifar10 --data CIFAR --images 32
    python -m experiments.generative builtin --data imagenet_sample --images 8

Each attack runs beside itself with nothing to gain: what its round through the model alone does to a picture
is no success. Pictures are saved as PNG and read again; accuracy and distances are theirs. `report.json`,
`table.md` and the pictures go to `--out`, after each attack.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks import Linf, cross_entropy, pgd
from attacks.generative import Ace, AtkPdm, LatentDiffAttack, PromptAttack, diff_pgd
from diffusion.latent import LatentDiffusion
from diffusion.load import load
from diffusion.model import DiffusionModel
from diffusion.pixel import PixelDiffusion
from experiments.cifar import LABELS, cifar10
from experiments.evaluate import balanced
from experiments.networks import cifar_network, efficientnet_lite0
from imaging.io import read, write
from imaging.metrics import l2, linf, psnr, ssim
from imaging.perceptual import Lpips
from imaging.picture import Picture
from imaging.whole import write_whole

BUDGET = 8 / 255
"""Of those that have a bound."""


@dataclass(frozen=True)
class World:
    """What is attacked: pictures with their classes and names, a classifier, and the model that attacks."""

    model: DiffusionModel
    classifier: nn.Module
    images: Tensor
    labels: Tensor
    names: list[str]
    targets: Tensor
    """Another class for each picture, for attacks that want one."""
    dilation: int
    """ACE's, which is 15 pixels of 128."""


Attack = Callable[[World, torch.Generator, bool], Tensor]
"""Takes the world, randomness, and whether there is something to gain."""


def _pgd(world: World, generator: torch.Generator, gain: bool) -> Tensor:
    step = BUDGET / 4 if gain else 0.0
    objective = cross_entropy(world.classifier, world.labels)
    return pgd(objective, world.images, Linf(BUDGET), steps=20, step_size=step)


def _diff_pgd(world: World, generator: torch.Generator, gain: bool) -> Tensor:
    step = BUDGET / 4 if gain else 0.0
    given = (world.model, world.classifier, world.images, world.labels, Linf(BUDGET))
    return diff_pgd(*given, t=50, steps=5, iterations=10, step_size=step, generator=generator)


def _latent(world: World, generator: torch.Generator, gain: bool, mask: str = "none") -> Tensor:
    attack = LatentDiffAttack(iterations=30 if gain else 0, mask=mask)  # type: ignore[arg-type]
    return attack(world.model, world.classifier, world.images, world.labels, world.names)


def _ace(world: World, generator: torch.Generator, gain: bool) -> Tensor:
    attack = Ace(iterations=50 if gain else 1, step_size=1 / 255 if gain else 0.0, dilation=world.dilation)
    return attack(world.model, world.classifier, world.images, world.targets, generator=generator).images


def _p2p(world: World, generator: torch.Generator, gain: bool) -> Tensor:
    attack = PromptAttack(rounds=200, rate=5e-4 if gain else 0.0)
    assert isinstance(world.model, LatentDiffusion | PixelDiffusion)
    given = (world.classifier, world.images, world.labels, world.names)
    return attack(world.model, *given, generator=generator).images


def _atkpdm(world: World, generator: torch.Generator, gain: bool, classify: bool = False) -> Tensor:
    attack = AtkPdm(steps=30, step_size=BUDGET / 8 if gain else 0.0)
    objective = cross_entropy(world.classifier, world.labels) if classify else None
    return attack(world.model, world.images, ball=Linf(BUDGET), objective=objective, generator=generator)


ATTACKS: dict[str, Attack] = {
    "pgd": _pgd,
    "diff-pgd": _diff_pgd,
    "latent": _latent,
    "latent-soft": partial(_latent, mask="soft"),
    "ace": _ace,
    "p2p": _p2p,
    "atkpdm": _atkpdm,
    "atkpdm-classifier": partial(_atkpdm, classify=True),
}


WORDED = ("latent-soft",)
"""Those that look at the attention to words."""


def attacks_of(model: DiffusionModel) -> list[str]:
    """Return the attacks that can be made with a model."""
    return [name for name in ATTACKS if name not in WORDED or isinstance(model, LatentDiffusion)]


@dataclass(frozen=True)
class Figures:
    """One attack's, as means over the pictures that it saved; distances from the originals."""

    attack: str
    images: int
    idle: float
    """Share that is classified right after the attack's round with nothing to gain."""
    right: float
    """Share that is classified right after the attack."""
    targeted: float
    """Share that is taken for the other class of `World.targets`."""
    linf: float
    """In 1/255."""
    l2: float
    psnr: float
    """Of the squared error of all pictures together; one that an attack left alone has none of its own."""
    ssim: float
    lpips: float | None
    seconds: float
    """For one picture."""


def measure(
    world: World,
    names: Sequence[str],
    out: Path,
    *,
    lpips: Lpips | None = None,
    seed: int = 0,
    batch: int = 16,
) -> Iterator[Figures]:
    """Run attacks and yield the figures of each; pictures go to a folder of `out` for each."""
    for name in names:
        start = time.perf_counter()
        made = _saved(_run(world, name, seed, batch, gain=True), out / name)
        seconds = (time.perf_counter() - start) / len(made)
        idle = _saved(_run(world, name, seed, batch, gain=False), out / f"{name}-idle")
        with torch.no_grad():
            said, said_idle = world.classifier(made).argmax(1), world.classifier(idle).argmax(1)
            apart = None if lpips is None else float(lpips(made, world.images).mean())
        yield Figures(
            name,
            len(made),
            float((said_idle == world.labels).float().mean()),
            float((said == world.labels).float().mean()),
            float((said == world.targets).float().mean()),
            float(linf(made, world.images).mean()),
            float(l2(made, world.images).mean()),
            float(psnr(*(each.flatten(0, 1)[None] for each in (made, world.images)))),
            float(ssim(made, world.images).mean()),
            apart,
            seconds,
        )


def _run(world: World, name: str, seed: int, batch: int, *, gain: bool) -> Tensor:
    parts = []
    for rows in torch.arange(len(world.images)).split(batch):
        part = World(
            world.model,
            world.classifier,
            world.images[rows],
            world.labels[rows],
            [world.names[row] for row in rows.tolist()],
            world.targets[rows],
            world.dilation,
        )
        parts.append(ATTACKS[name](part, torch.Generator().manual_seed(seed), gain))
    return torch.cat(parts)


def _saved(images: Tensor, folder: Path) -> Tensor:
    """Write pictures as PNG and return what the files hold."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        write(Picture.from_pixels(image[None].cpu()), path, overwrite=True)
    return torch.cat([read(path).pixels for path in paths]).to(images)


def table(figures: Sequence[Figures]) -> str:
    """Return Markdown, shares in per cent."""
    heads = ["attack", "idle", "right", "other class", "Linf", "L2", "PSNR", "SSIM", "LPIPS", "s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in figures:
        shares = [f"{100 * value:.0f}" for value in (one.idle, one.right, one.targeted)]
        apart = "" if one.lpips is None else f"{one.lpips:.3f}"
        cells = [f"{one.linf:.1f}", f"{one.l2:.2f}", f"{one.psnr:.1f}", f"{one.ssim:.3f}", apart]
        lines.append(f"| {one.attack} | {' | '.join([*shares, *cells])} | {one.seconds:.1f} |")
    return "\n".join(lines) + "\n"


def _cifar(given: argparse.Namespace) -> World:
    pictures, labels = cifar10(given.data, train=False)
    rows = balanced(labels, given.images, given.seed)
    labels = labels[rows]
    names = [LABELS[label] for label in labels.tolist()]
    model = load("cifar10", device=given.device)
    classifier = cifar_network(given.classifier or "cifar10-natural").to(given.device)
    images, labels = (pictures[rows].float() / 255).to(given.device), labels.to(given.device)
    return World(model, classifier, images, labels, names, (labels + 1) % 10, 3)


def _imagenet(given: argparse.Namespace) -> World:
    """Pictures named `wnid_class_name.jpg`, those whose class the classifier knows by one name."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES as categories

    paths = sorted(Path(given.data).glob("n*_*.jpg"))
    known = {name.lower(): number for number, name in enumerate(categories) if categories.count(name) == 1}
    named = [(path, path.stem.split("_", 1)[1].replace("_", " ").lower()) for path in paths]
    usable = [(path, name) for path, name in named if name in known]
    if len(usable) < given.images:
        raise ValueError(
            f"{given.data} holds {len(usable)} named ImageNet pictures; asked for {given.images}"
        )
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(given.seed))
    chosen = [usable[row] for row in order[: given.images].tolist()]
    images = torch.cat([_centre(read(path).pixels) for path, _ in chosen])
    names = [name for _, name in chosen]
    labels = torch.tensor([known[name] for name in names])
    model, classifier = load(given.model, device=given.device), efficientnet_lite0().to(given.device)
    labels, images = labels.to(given.device), images.to(given.device)
    return World(model, classifier, images, labels, names, (labels + 1) % 1000, 15)


def _centre(images: Tensor, side: int = 224) -> Tensor:
    top, left = ((extent - side) // 2 for extent in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m experiments.generative",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="cifar10, or a model of larger pictures: builtin, a folder, a hub id")
    parser.add_argument(
        "--classifier",
        help="of CIFAR-10, by default cifar10-natural; larger pictures are judged by EfficientNet-Lite0",
    )
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument(
        "--attack", nargs="*", choices=list(ATTACKS), help="default: all that the model can make"
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lpips", type=Path, help="weights of LPIPS; distances are left out without")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/generative"))
    given = parser.parse_args(arguments)
    try:
        world = _cifar(given) if given.model == "cifar10" else _imagenet(given)
        lpips = None if given.lpips is None else Lpips.from_file(given.lpips)
        figures, names = [], given.attack or attacks_of(world.model)
        for one in measure(world, names, given.out, lpips=lpips, seed=given.seed, batch=given.batch):
            figures.append(one)
            _report(figures, given.out)  # what is measured is kept, however the run ends
    except (ValueError, OSError, ImportError) as error:
        print(f"generative: {error}", file=sys.stderr)
        return 1
    print(table(figures))
    return 0


def _report(figures: Sequence[Figures], out: Path) -> None:
    write_whole(out / "report.json", json.dumps([asdict(one) for one in figures], indent=1) + "\n")
    write_whole(out / "table.md", table(figures))


if __name__ == "__main__":
    sys.exit(main())
