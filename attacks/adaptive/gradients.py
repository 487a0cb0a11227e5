"""Gradients through a purifier, each as a module that takes the purifier's place before a classifier.

Any attack, of this project or of a library, differentiates `nn.Sequential(Exact(purifier), classifier)` as it
would any network. What a purifier has to offer is a chain of pure functions for given seeds (`Chain`).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from attacks.ball import Images

Seeds = Int[Tensor, " batch"]
State = Tensor
Step = Callable[[State, Images], State]


class Chain(Protocol):
    """A randomised defence that can be replayed: `purify.Purifier`, or anything of this shape."""

    def chain(self, seeds: Seeds) -> list[Step]:
        """Steps (state, images) -> state; the first state is the images, the last what is classified."""
        ...

    def draw_seeds(self, batch: int) -> Seeds:
        """One new seed per image."""
        ...

    def __call__(self, images: Images, seeds: Seeds | None = None) -> Images: ...


class ReplayError(RuntimeError):
    """A step gave something else the second time: its noise is not settled by the seeds."""


def trajectory(steps: Sequence[Step], images: Images, *, verify: bool = False) -> tuple[State, ...]:
    """Return the state after each step, with exact gradients at the graph memory of one step.

    The chain runs without a graph and its states are kept. In the backward pass each step is run again from
    its state, differentiated and freed, from the last to the first; what reaches the images by way of a
    step's second argument is added up. So the graph is one step's however long the chain; the states kept
    are one picture per step.

    Args:
        steps: pure functions (state, images) -> state.
        images: the first state, and what steps are guided by.
        verify: compare each replayed state with the first run's.

    Raises:
        ReplayError: in the backward pass, when `verify` finds a step that is not a pure function.
    """
    return _Replay.apply(tuple(steps), verify, images)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: tuple[Step, ...], verify: bool, images: Images) -> tuple[State, ...]:
        states = [images]
        for step in steps:
            state = step(states[-1], images)
            # outputs of a function must not share memory with each other or with its inputs
            states.append(state.clone() if state is states[-1] or state._is_view() else state)
        ctx.steps, ctx.verify = steps, verify
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*states)
        ctx.autocast = _autocast_here(images.device.type)
        return tuple(states[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[None, None, Images | None]:  # pyrefly: ignore
        states = ctx.saved_tensors
        along, across = None, None
        for number in reversed(range(len(ctx.steps))):
            along = _sum(along, grad_outputs[number])
            if along is None:
                continue
            with torch.enable_grad(), ctx.autocast():
                state, images = (tensor.detach().requires_grad_() for tensor in (states[number], states[0]))
                replayed = ctx.steps[number](state, images)
            if ctx.verify:
                _require_same(replayed, states[number + 1], number)
            if not replayed.requires_grad:
                along = None
                continue
            along, guided = torch.autograd.grad(replayed, (state, images), along, allow_unused=True)
            across = _sum(across, guided)
        return None, None, _sum(along, across)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other


def _autocast_here(device: str) -> Callable[[], Any]:
    """Return what restores the autocast state of this moment, which a backward pass does not inherit."""
    if not torch.is_autocast_enabled(device):
        return nullcontext
    dtype = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype)


def _require_same(replayed: State, kept: State, number: int) -> None:
    scale = float(kept.abs().max().clamp_min(1))
    off = float((replayed.detach() - kept).abs().max())
    if not off <= 1e-3 * scale:
        raise ReplayError(
            f"step {number} differs by {off:.3g} when replayed: its randomness must come from its seeds"
        )


class _Wrapped(nn.Module):
    """A purifier behind another way to its gradient; what is not overridden is the purifier's own."""

    def __init__(self, purifier: Chain) -> None:
        super().__init__()
        self.purifier = purifier

    def chain(self, seeds: Seeds) -> list[Step]:
        return self.purifier.chain(seeds)

    def draw_seeds(self, batch: int) -> Seeds:
        return self.purifier.draw_seeds(batch)

    def _seeds(self, images: Images, seeds: Seeds | None) -> Seeds:
        if hasattr(self.purifier, "check"):
            self.purifier.check(images)
        return self.draw_seeds(len(images)) if seeds is None else seeds


class Exact(_Wrapped):
    """The true gradient of the sampled map, at the graph memory of one step; see `trajectory`.

    `verify=True` checks in each backward pass that the replay repeats the first run.
    """

    def __init__(self, purifier: Chain, *, verify: bool = False) -> None:
        super().__init__(purifier)
        self.verify = verify

    def forward(self, images: Images, seeds: Seeds | None = None) -> Images:
        steps = self.chain(self._seeds(images, seeds))
        return trajectory(steps, images, verify=self.verify)[-1] if steps else images


class Adjoint(_Wrapped):
    """The continuous adjoint of the reverse equation, as DiffPure's evaluation took it: approximate.

    The backward pass does not keep states. It walks the equation back by Euler steps from where it arrived,
    which reconstructs each state only to first order, and takes each step's Jacobian there (Li et al., 2020,
    AISTATS, arXiv 2001.01328, for noise that does not depend on the state). Kept for comparison with
    `Exact`, which costs the same and is right.

    `first` and `last` number the steps that integrate: all between noising and decoding by default.
    """

    def __init__(self, purifier: Chain, *, first: int = 2, last: int = -1) -> None:
        super().__init__(purifier)
        self.first, self.last = first, last

    def forward(self, images: Images, seeds: Seeds | None = None) -> Images:
        steps = self.chain(self._seeds(images, seeds))
        last = len(steps) + self.last if self.last < 0 else self.last
        state = images
        for step in steps[: self.first]:
            state = step(state, images)
        state = _AdjointWalk.apply(tuple(steps[self.first : last]), images.detach(), state)
        for step in steps[last:]:
            state = step(state, images)
        return state


class _AdjointWalk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: tuple[Step, ...], images: Images, state: State) -> State:
        for step in steps:
            state = step(state, images)
        ctx.steps = steps
        ctx.save_for_backward(images, state)
        ctx.autocast = _autocast_here(images.device.type)
        return state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, State]:  # pyrefly: ignore
        (images, state), (along,) = ctx.saved_tensors, grad_outputs
        for step in reversed(ctx.steps):
            with ctx.autocast(), torch.no_grad():
                state = 2 * state - step(state, images)
            with ctx.autocast(), torch.enable_grad():
                leaf = state.detach().requires_grad_()
                (along,) = torch.autograd.grad(step(leaf, images), leaf, along)
        return None, None, along


class Checkpointed(_Wrapped):
    """The true gradient by `torch.utils.checkpoint`, step by step; slower to build and no leaner than
    `Exact`."""

    def forward(self, images: Images, seeds: Seeds | None = None) -> Images:
        state = images
        for step in self.chain(self._seeds(images, seeds)):
            state = checkpoint(step, state, images, use_reentrant=False, preserve_rng_state=False)
        return state


class BPDA(_Wrapped):
    """The identity's gradient in place of the purifier's (Athalye et al., 2018, arXiv 1802.00420).

    A lower bar, not an evaluation: robust accuracy under it reads too high. If it beats `Exact`, the exact
    gradient is broken.
    """

    def forward(self, images: Images, seeds: Seeds | None = None) -> Images:
        with torch.no_grad():
            purified = self.purifier(images, self._seeds(images, seeds))
        return images + (purified - images).detach()


class Surrogate(_Wrapped):
    """The gradient of a cheaper purifier, such as one of fewer steps, at the true purifier's output.

    Lee and Kim (2023, ICCV, arXiv 2303.09051) attack a five-step chain in place of a long one. Biased, and
    often strong. Both get the same seeds.
    """

    def __init__(self, purifier: Chain, cheaper: Chain) -> None:
        super().__init__(purifier)
        self.cheaper = Exact(cheaper)

    def forward(self, images: Images, seeds: Seeds | None = None) -> Images:
        seeds = self._seeds(images, seeds)
        with torch.no_grad():
            purified = self.purifier(images, seeds)
        substitute = self.cheaper(images, seeds)
        return substitute + (purified - substitute).detach()


class ScoreOnly(_Wrapped):
    """The classifier's gradient at the purified point, turned away from where purification leads.

    The joint attack of Yoon et al. (2021, ICML, arXiv 2106.06041) in the form that needs no gradient of the
    prior: to the classifier's gradient, of mean magnitude 1, `weight` times the displacement against the
    purifier is added. Weak; for comparison.
    """

    def __init__(self, purifier: Chain, *, weight: float = 0.5) -> None:
        super().__init__(purifier)
        self.weight = weight

    def forward(self, images: Images, seeds: Seeds | None = None) -> Images:
        with torch.no_grad():
            purified = self.purifier(images, self._seeds(images, seeds))
        return _AgainstPurifier.apply(images, purified, self.weight)


class _AgainstPurifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Images, purified: Images, weight: float) -> Images:
        ctx.save_for_backward(images - purified)
        ctx.weight = weight
        return purified.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Images, None, None]:  # pyrefly: ignore
        (away,), (gradient,) = ctx.saved_tensors, grad_outputs
        size = [tensor.abs().flatten(1).mean(1).view(-1, 1, 1, 1) for tensor in (gradient, away)]
        return gradient + ctx.weight * away * size[0] / size[1].clamp_min(1e-12), None, None
