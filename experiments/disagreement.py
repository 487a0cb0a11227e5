"""Training pictures edited by a diffusion model to where a teacher is sure and a student is not.

    python -m experiments.disagreement cifar10 --teacher t.safetensors --student s.safetensors --data DATA \
        --out made.npz --images 5000

Confidence-guided augmentation (ConfiG; Popp et al., 2025, arXiv 2506.02294), where the paper optimises the
latent variables of an editor told what to do in words: training pictures are noised part of the way and
brought back by DDIM, each clean picture on the way moved up the gradient of log p_teacher(y) - log
p_student(y). Those that the teacher does not take for their class any more are left out. The npz mixes into
training by `--data.generated`; the student is then trained further, or anew.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusion.load import load
from diffusion.model import DiffusionModel, Images
from diffusion.samplers import ddim_mean, denoise, noised, steps_of
from distill.classifier import load as load_classifier
from distill.draws import generator_of
from distill.images import check_npz, labelled, to_unit, write_npz

Labels = Int[Tensor, " batch"]


def gap(teacher: nn.Module, student: nn.Module, images: Images, labels: Labels) -> Float[Tensor, " batch"]:
    """Return how much surer of its class the teacher is, as a difference of logarithms."""
    sure, unsure = (network(images).log_softmax(1) for network in (teacher, student))
    return (sure - unsure).gather(1, labels[:, None])[:, 0]


@torch.no_grad()
def disagreeing(
    model: DiffusionModel,
    teacher: nn.Module,
    student: nn.Module,
    images: Images,
    labels: Labels,
    *,
    t: int,
    steps: int,
    scale: float,
    generator: torch.Generator | None = None,
) -> Images:
    """Return images of the same classes on which student and teacher differ more.

    Args:
        model: diffusion model of such images.
        teacher: frozen, as `student`: classifiers of images in [0, 1] that return logits.
        images: in [0, 1].
        labels: their classes.
        t: timesteps into the noise.
        steps: of the way back.
        scale: length in L2, in units of images, by which each clean picture on the way is moved.
        generator: of the noise.
    """
    z = model.encode(images)
    noise = torch.randn(z.shape, generator=generator).to(z)
    timesteps = model.schedule.lowest(t, steps)
    z_t = noised(model.schedule, z, noise, timesteps[0])
    for step in steps_of(model.schedule, timesteps, model.schedule.final):
        clean, seen = denoise(model, z_t, step, None, None, 1.0)
        moved = _moved(model, teacher, student, clean, labels, scale)
        # the noise stays what was seen: DDIM goes on as if the moved picture had been seen in it
        z_t = ddim_mean(step, moved, seen)
    return model.decode(z_t)


def _moved(
    model: DiffusionModel, teacher: nn.Module, student: nn.Module, clean: Tensor, labels: Labels, scale: float
) -> Tensor:
    with torch.enable_grad():
        images = model.decode(clean).detach().requires_grad_()
        (uphill,) = torch.autograd.grad(gap(teacher, student, images, labels).sum(), images)
    length = uphill.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp(min=1e-12)
    return model.encode((images.detach() + scale * uphill / length).clamp(0, 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser("python -m experiments.disagreement", description=about)
    parser.add_argument("model", help="what diffusion.load takes")
    parser.add_argument("--teacher", required=True, help="safetensors")
    parser.add_argument("--student", required=True, help="safetensors")
    parser.add_argument("--data", required=True, help="folder or npz file, see distill.images.labelled")
    parser.add_argument("--out", type=Path, required=True, help="npz to write")
    parser.add_argument("--images", type=int, default=5000, help="training pictures to begin from")
    parser.add_argument("--t", type=int, default=200, help="timesteps into the noise")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--scale", type=float, default=0.3, help="L2 length of each move")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except (ValueError, OSError) as error:
        print(f"disagreement: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace) -> None:
    check_npz(given.out)
    pictures = labelled(given.data, train=True)
    if not 1 <= given.images <= len(pictures):
        raise ValueError(f"there are {len(pictures)} training pictures; asked for {given.images}")
    model = load(given.model, device=given.device)
    teacher, student = (load_classifier(each).to(given.device) for each in (given.teacher, given.student))
    order = torch.randperm(len(pictures), generator=generator_of(given.seed))[: given.images]
    pixels: list[Tensor] = []
    kept: list[Tensor] = []
    before: list[Tensor] = []
    after: list[Tensor] = []
    for number, some in enumerate(order.split(given.batch)):
        images = to_unit(pictures.pixels[some]).to(given.device)
        labels = pictures.labels[some].to(given.device)
        made = disagreeing(
            model,
            teacher,
            student,
            images,
            labels,
            t=given.t,
            steps=given.steps,
            scale=given.scale,
            generator=generator_of(given.seed, number),
        )
        rounded = (made * 255).round().to(torch.uint8)
        with torch.no_grad():
            true = teacher(to_unit(rounded)).argmax(1) == labels
            before.append(gap(teacher, student, images, labels))
            after.append(gap(teacher, student, to_unit(rounded), labels)[true])
        pixels.append(rounded[true].cpu())
        kept.append(labels[true].cpu())
    labels = torch.cat(kept)
    if not len(labels):
        raise ValueError("the teacher takes none of the pictures for its class: lower --scale or --t")
    write_npz(given.out, torch.cat(pixels), labels)
    print(
        f"{given.out}: {len(labels)} of {given.images} pictures kept; the teacher is surer of their class by "
        f"{float(torch.cat(after).mean()):.2f}, of the originals by {float(torch.cat(before).mean()):.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
