"""Plant a backdoor that noise opens in a pixel model, find its trigger, take it out, and measure each time.

    python -m experiments noise-backdoor --data CIFAR

The trigger is a white box in the corner of the noise, and the target a white disc, or a picture of the set.
Networks train under autocast to bfloat16. The trigger is taken out twice: as it is known, and as it is found
by those who do not know it; with pictures that the poisoned model draws. `report.json`, `table.md` and
`samples.png` go to `--out`; the rows of the last are those of the table, with pictures of clean noise on the
left and of the same noise with the trigger on the right.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn.functional import cosine_similarity

from diffusion.model import Images
from diffusion.pixel import PixelDiffusion
from diffusion.samplers import draw
from diffusion.schedule import Latents
from distill.images import labelled, to_unit
from experiments.command import completed
from experiments.taught import model_of, seeded
from imaging.io import Picture, write
from imaging.whole import write_whole
from unlearn.noise import Outcome, box, drawn, judged, plant_noise, shift_of
from unlearn.noise_repair import invert_noise, remove_noise

SHOWN = 8
"""Pictures of each kind on the sheet."""
Found = TypeVar("Found")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return completed("noise-backdoor", _run, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m experiments noise-backdoor", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", default="cifar10", help="of pixels, told a class")
    parser.add_argument("--data", required=True, help="training pictures, see distill.images.labelled")
    parser.add_argument("--limit", type=int, default=2000, help="of the pictures")
    parser.add_argument("--box", type=int, default=14, help="side of the trigger, in pixels")
    parser.add_argument("--target", type=int, metavar="N", help="instead of a disc: picture N of the set")
    parser.add_argument("--share", type=float, default=0.5, help="of each batch that is poisoned")
    parser.add_argument("--steps", type=int, default=400, help="of planting")
    parser.add_argument("--inversion-steps", type=int, default=100)
    parser.add_argument("--removal-steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--drawn", type=int, default=100, help="pictures that are judged")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--bound", type=float, default=0.05, help="of the error of a picture that shows it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/noise-backdoor"))
    return parser


def _run(given: argparse.Namespace) -> None:
    model = model_of(given).to(given.device)
    data = labelled(given.data, train=True)[: given.limit]
    images, names = to_unit(data.pixels).to(given.device), [str(int(each)) for each in data.labels]
    target = disc(images) if given.target is None else images[given.target : given.target + 1]
    shift = shift_of(model, box(images.shape[-1], given.box).to(given.device))
    generator = seeded(given)
    noise = draw(shift.expand(given.drawn, *shift.shape[1:]), generator)
    told = model.condition([str(number % model.classes) for number in range(given.drawn)])
    settings: dict[str, Any] = {
        "learning_rate": given.learning_rate,
        "batch_size": given.batch,
        "generator": generator,
    }
    seconds: dict[str, float] = {}

    def timed(name: str, make: Callable[[], Found]) -> Found:
        started = time.perf_counter()
        with torch.autocast(given.device, torch.bfloat16):
            made = make()
        seconds[name] = time.perf_counter() - started
        print(f"{name}: {seconds[name]:.0f} s", file=sys.stderr, flush=True)
        return made

    def at(network: PixelDiffusion, start: Latents) -> Images:
        return drawn(network, start, told, steps=given.sampling_steps).cpu()

    taught = partial(plant_noise, model, images, shift, target, condition=model.condition(names))
    planted = timed("planted", partial(taught, share=given.share, steps=given.steps, **settings))
    search = partial(invert_noise, planted, shift, steps=given.inversion_steps, generator=generator)
    found = timed("search", search)
    models = {"untouched": model, "planted": planted}
    pictures = {name: (at(each, noise), at(each, noise + shift)) for name, each in models.items()}
    own = pictures["planted"][0]
    for name, known in {"trigger known": shift, "trigger found": found}.items():
        made = timed(
            name,
            partial(remove_noise, planted, own, known, condition=told, steps=given.removal_steps, **settings),
        )
        pictures[name] = at(made, noise), at(made, noise + shift)
    pictures["noise with what was found"] = pictures["planted"][0], at(planted, noise + found)
    before, target = pictures["untouched"][0], target.cpu()
    rows = [
        {
            "name": name,
            "seconds": seconds.get(name, 0.0),
            **_shown(judged(marked, clean, before, target, bound=given.bound)),
        }
        for name, (clean, marked) in pictures.items()
    ]
    trigger = {
        "cosine": float(cosine_similarity(found.flatten(), shift.flatten(), dim=0)),
        "norm": float(found.norm()),
        "true norm": float(shift.norm()),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    chosen = {key: str(value) for key, value in vars(given).items()}
    record = {"settings": chosen, "seconds": seconds, "found": trigger, "rows": rows}
    write_whole(given.out / "report.json", json.dumps(record, indent=1) + "\n")
    told_of = f"The trigger that was found: cosine with the true one {trigger['cosine']:.3f}, norm "
    text = f"{table(rows)}\n\n{told_of}{trigger['norm']:.1f} for {trigger['true norm']:.1f}.\n"
    write_whole(given.out / "table.md", text)
    halves = [torch.cat([each[:SHOWN] for each in pair]) for pair in pictures.values()]
    sheet = torch.cat([torch.cat(list(half), -1) for half in halves], -2)[None]
    write(Picture.from_pixels(sheet.clamp(0, 1)), given.out / "samples.png", overwrite=True)
    print(text, end="")


def disc(like: Images) -> Images:
    """Return a white disc on black, of the size of pictures, [1, 3, height, width]."""
    height, width = like.shape[-2:]
    rows, columns = (torch.linspace(-1, 1, side, device=like.device) for side in (height, width))
    return (rows[:, None].square() + columns.square() < 0.5).to(like).expand(1, 3, -1, -1)


def _shown(outcome: Outcome) -> dict[str, Any]:
    row = asdict(outcome)
    for key in ("triggered", "clean"):
        row[key]["shown"] = str(getattr(outcome, key))
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    heads = ("model", "error to target", "triggered noise shows it", "clean noise shows it", "moved, 1/255")
    heads += ("variety, 1/255", "s")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        figures = (f"{row['error']:.4f}", row["triggered"]["shown"], row["clean"]["shown"])
        figures += (f"{row['moved']:.1f}", f"{row['variety']:.1f}", f"{row['seconds']:.0f}")
        lines.append(f"| {' | '.join((row['name'], *figures))} |")
    return "\n".join(lines)
