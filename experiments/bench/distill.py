"""Images per second of a training step of ours, against the plain loop that published code runs.

`python -m experiments.bench.distill` prints one Markdown row for each method: the step of
`distill.module.RobustTraining` (attack, loss, backward, SGD), and the same step as a plain loop, with the
student's weights asking for gradients in the attack (`loss.backward()` on the images), float32, PyTorch's
default layout, and teachers run again wherever their logits are used. Both do the same attack steps on the
same batch, in turn, in one process; the best of the repeats counts. Quote ratios of one run.

    --methods trades rslad --student resnet18 --teacher wrn-34-10 --batch 64 --precision bfloat16 --device cpu
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distill import methods
from distill.averaging import Ema, WeightAverage
from distill.classifier import Classifier
from distill.draws import Draws, generator_of
from distill.losses import total
from distill.method import Method, Step
from distill.methods.labels import cosine

METHODS: dict[str, Method] = {
    "pgd-at": methods.PgdAt(),
    "trades": methods.Trades(eps=8 / 255, step_size=2 / 255),
    "mart": methods.Mart(eps=8 / 255, step_size=2 / 255),
    "ard": methods.Ard(),
    "iad": methods.Iad(begin=0),
    "rslad": methods.Rslad(),
    "adaad": methods.AdaAd(),
    "mtard": methods.Mtard(),
    "adr": methods.Adr(),
}


class Bench:
    """A student, its teachers and one batch, on which steps are timed; weights lie as in `layout`."""

    def __init__(self, method: Method, given: argparse.Namespace, layout: torch.memory_format) -> None:
        torch.manual_seed(0)
        device = torch.device(given.device)
        self.method, self.device = method, device
        self.student = Classifier(given.student).to(device).to(memory_format=layout).train()
        self.teachers = {
            part: Classifier(given.teacher).to(device).to(memory_format=layout).eval().requires_grad_(False)
            for part in method.teachers
        }
        self.average = WeightAverage(self.student, Ema()) if method.averaged else None
        self.state = method.new_state().to(device)
        self.images = torch.rand(given.batch, 3, 32, 32, device=device)
        self.labels = torch.arange(given.batch, device=device) % 10
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
        self.dtype = torch.bfloat16 if given.precision == "bfloat16" else None

    def ours(self) -> None:
        """One step as `RobustTraining` takes it."""
        step = Step(
            self.student,
            self.images,
            self.labels,
            Draws(generator_of(0)),
            teachers=self.teachers,
            average=self.average,
            state=self.state,
        )
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            loss = total(self.method.terms(step, self.method.perturb(step))).mean()
        self._learn(loss)

    def plain(self) -> None:
        """The same step as published code takes it."""
        self._learn(PLAIN[type(self.method).__name__](self))

    def _learn(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.student, 0)

    def attacked(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """The inner loop of published code: a backward pass through images and weights at every step."""
        method, images = self.method, self.images
        eps, size = float(method.eps), float(method.step_size)
        self.student.eval()
        moved = images + 0.001 * torch.randn_like(images)
        for _ in range(method.steps):
            moved = moved.detach().requires_grad_()
            self.student.zero_grad()
            loss(moved).backward()
            assert moved.grad is not None
            moved = moved.detach() + size * moved.grad.sign()
            moved = torch.min(torch.max(moved, images - eps), images + eps).clamp(0, 1)
        self.student.train()
        return moved.detach()

    def attacked_labels(self) -> Tensor:
        return self.attacked(lambda x: F.cross_entropy(self.student(x), self.labels))


def _kl(target: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")


def _pgd_at(bench: Bench) -> Tensor:
    return F.cross_entropy(bench.student(bench.attacked_labels()), bench.labels)


def _trades(bench: Bench) -> Tensor:
    # as in the released code, the clean prediction of the attack is computed at every step, with a graph
    student, images = bench.student, bench.images
    moved = bench.attacked(lambda x: _kl(student(images), student(x)))
    clean = student(images)
    return F.cross_entropy(clean, bench.labels) + 6 * _kl(clean, student(moved))


def _mart(bench: Bench) -> Tensor:
    moved = bench.attacked_labels()
    clean, seen = bench.student(bench.images), bench.student(moved)
    p, labels = seen.softmax(1), bench.labels[:, None]
    boosted = F.cross_entropy(seen, bench.labels) - (1.0001 - p.scatter(1, labels, 0).amax(1)).log().mean()
    apart = F.kl_div(seen.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    return boosted + 5 * (apart * (1.0000001 - clean.softmax(1).gather(1, labels)[:, 0])).mean()


def _ard(bench: Bench) -> Tensor:
    moved = bench.attacked_labels()
    return 90 * _kl(bench.teachers["robust"](bench.images) / 30, bench.student(moved) / 30)


def _iad(bench: Bench) -> Tensor:
    moved, teacher = bench.attacked_labels(), bench.teachers["robust"]
    clean, seen = bench.student(bench.images), bench.student(moved)
    trusted = teacher(moved).softmax(1).gather(1, bench.labels[:, None])[:, 0] ** 0.1
    own = F.kl_div(seen.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    return _kl(teacher(bench.images), seen) + ((1 - trusted) * own).mean()


def _rslad(bench: Bench) -> Tensor:
    teacher, images = bench.teachers["robust"], bench.images
    moved = bench.attacked(lambda x: _kl(teacher(images), bench.student(x)))
    robust = _kl(teacher(images), bench.student(moved))
    return (5 * robust + _kl(teacher(images), bench.student(images))) / 60


def _adaad(bench: Bench) -> Tensor:
    teacher = bench.teachers["robust"]
    moved = bench.attacked(lambda x: _kl(teacher(x), bench.student(x)))
    return 0.1 * _kl(teacher(moved), bench.student(moved))


def _mtard(bench: Bench) -> Tensor:
    moved = bench.attacked_labels()
    robust = _kl(bench.teachers["robust"](moved), bench.student(moved))
    return (robust + _kl(bench.teachers["natural"](bench.images), bench.student(bench.images))) / 20


def _adr(bench: Bench) -> Tensor:
    average, labels = bench.average, bench.labels
    assert average is not None

    def target() -> Tensor:
        p = (average(bench.images) / cosine(2.5, 2.0, 0)).softmax(1)
        share = (0.7 - p.amax(1) + p.gather(1, labels[:, None])[:, 0]).clamp(0, 1)[:, None]
        return share * p + (1 - share) * F.one_hot(labels, p.shape[1])

    moved = bench.attacked(lambda x: F.cross_entropy(bench.student(x), target()))
    return F.cross_entropy(bench.student(moved), target())


PLAIN: dict[str, Callable[[Bench], Tensor]] = {
    "PgdAt": _pgd_at,
    "Trades": _trades,
    "Mart": _mart,
    "Ard": _ard,
    "Iad": _iad,
    "Rslad": _rslad,
    "AdaAd": _adaad,
    "Mtard": _mtard,
    "Adr": _adr,
}


def measure(method: Method, given: argparse.Namespace) -> tuple[float, float]:
    """Return images per second of our step and of the plain one, taken in turn, the best of each."""
    bench = Bench(method, given, torch.channels_last)
    best = {bench.ours: float("inf"), Bench(method, given, torch.contiguous_format).plain: float("inf")}
    for number in range(given.repeat + 1):
        for step in best:
            start = time.perf_counter()
            step()
            if bench.device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first pays for what loads once
                best[step] = min(best[step], time.perf_counter() - start)
    ours, plain = (len(bench.images) / seconds for seconds in best.values())
    return ours, plain


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m experiments.bench.distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--teacher", default="wrn-16-4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of our step")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    print("| method | ours, images/s | plain loop | ratio |", "|---|---|---|---|", sep="\n")
    for name in given.methods:
        ours, plain = measure(METHODS[name], given)
        print(f"| {name} | {ours:.1f} | {plain:.1f} | {ours / plain:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
