"""Teach a diffusion model a few pictures, as a thief would: all weights, low-rank adapters, or one new word.

A frozen model is never touched: `DiffusionModel.trainable_copy` and `low_rank` return a twin to train, and a
new word (`embed`) is a handful of embeddings beside the model.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffusion.latent import LatentDiffusion
from diffusion.losses import Losses, denoising_loss
from diffusion.model import Condition, DiffusionModel, Rows
from diffusion.samplers import ddim, draw
from diffusion.schedule import Latents, Timesteps

Vectors = Float[Tensor, "vectors dim"]
Progress = Callable[[int, Losses], object]
Term = Callable[[], Losses]
Model = TypeVar("Model", bound=DiffusionModel)

PROJECTIONS = frozenset(
    {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
)
"""What diffusers calls the linear maps around an attention, in U-Nets and in flow transformers."""


def attention_projections(model: DiffusionModel) -> list[str]:
    """Return the names, within the denoiser, of the linear maps into and out of its attentions.

    Raises ValueError if there are none, NoDenoiserError for an autoencoder alone.
    """
    linear = [n for n, layer in model.denoiser.named_modules() if isinstance(layer, nn.Linear)]
    plain = [name.removesuffix(".base_layer") for name in linear]  # as an adapter calls what it adapts
    names = [name for name in plain if _ends_with_one_of(name, PROJECTIONS)]
    if not names:
        raise ValueError(f"{model.name} has no attention to adapt: take a model that is told a text")
    return names


def _ends_with_one_of(name: str, endings: frozenset[str]) -> bool:
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def low_rank(model: Model, *, rank: int = 4, generator: torch.Generator | None = None) -> Model:
    """Return a twin whose attention projections carry trainable adapters of low rank.

    LoRA (Hu et al., 2022, ICLR, arXiv 2106.09685): each projection `W` becomes `W + B A` with `A` drawn from
    N(0, 1/rank^2) and `B` zero, so that the twin starts as the model. The adapters are float32 or wider. All
    other tensors are the model's own, frozen and shared, so that a twin costs next to no memory: do not move
    or convert one of the two. It stays in evaluation, without dropout.

    Raises ValueError for a rank below 1, a denoiser without attention, or one that has adapters already.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes a second to import

    if rank < 1:
        raise ValueError(f"the rank of adapters is at least 1; got {rank}")
    if hasattr(model.denoiser, "peft_config"):
        raise ValueError(f"this {model.name} has adapters already: adapt the model that it was made from")
    names = attention_projections(model)
    twin = model.twin(*model.denoiser.parameters(), *model.denoiser.buffers())
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator, and is overruled below
        inject_adapter_in_model(config, twin.denoiser)
    for name, parameter in twin.denoiser.named_parameters():
        if not parameter.requires_grad:
            continue
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        if ".lora_A." in f".{name}":
            parameter.data = draw(parameter.data, generator) / rank
    return twin


def merged(twin: Model) -> Model:
    """Return a model whose projections are what those of a `low_rank` twin are with their adapters added."""
    from peft.tuners.lora import LoraLayer

    whole = twin.twin()
    adapted = [(name, each) for name, each in whole.denoiser.named_modules() if isinstance(each, LoraLayer)]
    for name, layer in adapted:
        layer.merge()  # pyrefly: ignore
        parent, _, own = name.rpartition(".")
        whole.denoiser.get_submodule(parent)._modules[own] = layer.get_base_layer()
    vars(whole.denoiser).pop("peft_config", None)
    return whole.freeze()


def take_weights(twin: DiffusionModel) -> list[nn.Parameter]:
    """Return what trains in a twin, and let it require no gradients from here on but within `train`.

    An attack on the twin then builds no graph for its weights.
    """
    weights = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    twin.requires_grad_(False)
    return weights


def train(
    model: DiffusionModel,
    z: Latents,
    condition: Condition | None,
    *,
    parameters: Sequence[nn.Parameter] | None = None,
    steps: int,
    learning_rate: float,
    batch_size: int = 1,
    prior: tuple[Latents, Condition | None] | None = None,
    prior_weight: float = 1.0,
    optimiser: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
    callback: Progress | None = None,
) -> None:
    """Fine-tune a model in place on the latents of pictures, by AdamW on `denoising_loss`.

    Each step draws `batch_size` pictures, every one equally often, and for each a time, uniform over the
    schedule, and noise. Call `.denoiser.float()` before training a copy in half precision.

    Args:
        model: a twin, such as `model.trainable_copy()` or `low_rank(model)`.
        z: what is learned, `model.encode(images)`; the posterior mean, where trainers draw.
        condition: what the model is told about the pictures: one row, or one for each.
        parameters: what is trained, by default what requires gradients; it requires them while this lasts.
        steps: number of updates.
        learning_rate: of AdamW, with its usual weight decay of 0.01.
        batch_size: pictures per update.
        prior: latents of pictures of the class that the subject belongs to, and what the model is told about
            them. The prior preservation of DreamBooth (Ruiz et al., 2023, CVPR, arXiv 2208.12242): their
            loss, on a batch of its own, is added with `prior_weight`.
        prior_weight: see `prior`.
        optimiser: of `parameters`, kept from an earlier call with its moments, in the place of a new AdamW.
        generator: of batches, times and noises.
        callback: called as `callback(step, losses)` after each update, with the loss of each picture of the
            batch before it.

    Raises:
        ValueError: if nothing is trained, or half-precision weights are.
        ArithmeticError: as soon as the loss is not finite; the message names step and dtype.
    """
    trained = [p for p in model.parameters() if p.requires_grad] if parameters is None else list(parameters)
    terms = [(_term(model, z, condition, batch_size, generator), 1.0)]
    if prior is not None:
        terms.append((_term(model, *prior, batch_size, generator), prior_weight))
    descend(terms, trained, steps=steps, learning_rate=learning_rate, optimiser=optimiser, callback=callback)


@dataclass(frozen=True, eq=False)
class Concept:
    """A new word: embeddings that stand for a placeholder in prompts."""

    model: LatentDiffusion
    placeholder: str
    vectors: Vectors

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Return what the model is told; prompts without the placeholder are read as they are."""
        filled = _filled(prompts, self.placeholder, len(self.vectors))
        places = _places(self.model, prompts, self.placeholder, len(self.vectors))
        return _told(self.model, filled, places, self.vectors)


def embed(
    model: DiffusionModel,
    z: Latents,
    template: str,
    *,
    placeholder: str = "sks",
    steps: int,
    learning_rate: float,
    vectors: int = 1,
    init: str = "picture",
    batch_size: int = 1,
    generator: torch.Generator | None = None,
    callback: Progress | None = None,
) -> Concept:
    """Learn a word for some pictures by textual inversion (Gal et al., 2023, ICLR, arXiv 2208.01618).

    Only the embeddings of the placeholder are trained, as in `train`.

    Args:
        model: told a text by one encoder; nothing of it changes.
        z: what is learned, `model.encode(images)`.
        template: the prompt, with the placeholder in it.
        placeholder: the word that will be learned, replaced as a whole word.
        steps: number of updates.
        learning_rate: of AdamW; 5e-4 to 5e-3 are usual.
        vectors: how many tokens the word stands for.
        init: a text, the mean of whose embeddings the vectors start from.
        batch_size: pictures per update.
        generator: of batches, times and noises.
        callback: as for `train`.

    Raises:
        ValueError: for a model that is told otherwise, or a template without room for the placeholder.
    """
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"{model.name} looks up no words: textual inversion needs a Stable Diffusion 1 or 2")
    filled = _filled([template], placeholder, vectors)
    places = _places(model, [template], placeholder, vectors)
    if not places.any():
        raise ValueError(f"the template has no {placeholder!r} to learn: {template!r}")
    with torch.no_grad():
        leaf = model.rows([init])[model.words([init])].float().mean(0).repeat(vectors, 1)
    if not leaf.isfinite().all():
        raise ValueError("init needs a word to start from")
    learned, batches = nn.Parameter(leaf), batches_of(len(z), batch_size, generator)

    def losses() -> Losses:
        chosen = next(batches).to(z.device)
        return _loss(model, z[chosen], _told(model, filled, places, learned), generator)

    descend([(losses, 1.0)], [learned], steps=steps, learning_rate=learning_rate, callback=callback)
    return Concept(model, placeholder, learned.detach())


@torch.no_grad()
def imagine(
    model: DiffusionModel,
    condition: Condition | None,
    like: Latents,
    *,
    count: int,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> Latents:
    """Return latents of `count` pictures, of the size of `like`, that the model makes of a condition.

    Sampled by DDIM without guidance and not decoded: they are what prior preservation rehearses.
    """
    noise = draw(like[:1].expand(count, *like.shape[1:]), generator)
    timesteps = model.schedule.timesteps(steps, size=(like.shape[-2], like.shape[-1]))
    return ddim(model, noise, condition, timesteps=timesteps)


def descend(
    terms: Sequence[tuple[Term, float]],
    parameters: Sequence[nn.Parameter],
    *,
    steps: int,
    learning_rate: float,
    optimiser: torch.optim.Optimizer | None = None,
    callback: Progress | None = None,
) -> None:
    """Lower a weighted sum of means: of terms that each return one loss for every picture of a batch.

    By AdamW, or by `optimiser`, which has a rate of its own. The parameters require gradients while this
    lasts. `callback` is told the first term's losses.

    Raises ValueError if nothing is trained, or half-precision weights are; ArithmeticError as soon as a term
    is not finite.
    """
    _check(parameters)
    optimiser = optimiser or torch.optim.AdamW(parameters, lr=learning_rate)
    with _gradients_for(parameters):
        for step in range(steps):
            told = []
            optimiser.zero_grad(set_to_none=True)
            for term, weight in terms:
                with torch.enable_grad():
                    losses = term()
                _require_finite(losses, step)
                # One graph at a time: the terms' gradients add up, their memory does not.
                found = torch.autograd.grad(weight * losses.mean(), parameters, materialize_grads=True)
                for parameter, gradient in zip(parameters, found, strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                told.append(losses.detach())
            optimiser.step()
            torch.clear_autocast_cache()  # which may hold the weights of before
            if callback is not None:
                callback(step, told[0])
        optimiser.zero_grad(set_to_none=True)


def _term(
    model: DiffusionModel,
    z: Latents,
    condition: Condition | None,
    size: int,
    generator: torch.Generator | None,
) -> Term:
    """The loss of one batch of a set of pictures after the other."""
    batches = batches_of(len(z), size, generator)

    def losses() -> Losses:
        chosen = next(batches).to(z.device)
        return _loss(model, z[chosen], rows_of(condition, chosen), generator)

    return losses


def _check(parameters: Sequence[nn.Parameter]) -> None:
    if not parameters:
        raise ValueError("nothing is trained: pass a twin of the model (trainable_copy, low_rank)")
    if any(parameter.dtype.itemsize < 4 for parameter in parameters):
        raise ValueError("half precision loses small updates: call .denoiser.float() on the copy first")


def _require_finite(losses: Losses, step: int) -> None:
    if not losses.isfinite().all():
        dtype = str(losses.dtype).removeprefix("torch.")
        raise ArithmeticError(
            f"the training loss is not finite at step {step} (computed in {dtype}); try a lower learning rate"
        )


@contextmanager
def _gradients_for(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)


def batches_of(count: int, size: int, generator: torch.Generator | None) -> Iterator[Int[Tensor, " size"]]:
    """Yield shuffled numbers below `count` without end: none comes up a second time before all have."""
    device = "cpu" if generator is None else generator.device
    pool = torch.empty(0, dtype=torch.long, device=device)
    while True:
        while len(pool) < size:
            pool = torch.cat([pool, torch.randperm(count, generator=generator, device=device)])
        yield pool[:size]
        pool = pool[size:]


def rows_of(condition: Condition | None, indices: Int[Tensor, " size"]) -> Condition | None:
    """Return the rows of a condition that belong to a batch; a single one belongs to all."""
    if condition is None:
        return None
    parts = {f.name: getattr(condition, f.name) for f in fields(condition)}
    return Condition(**{n: p if p is None or len(p) == 1 else p[indices] for n, p in parts.items()})


def _loss(
    model: DiffusionModel, z: Latents, condition: Condition | None, generator: torch.Generator | None
) -> Losses:
    t = any_time(model, len(z), generator)
    return denoising_loss(model, z, draw(z, generator), t, condition)


def any_time(model: DiffusionModel, count: int, generator: torch.Generator | None) -> Timesteps:
    """Return times, uniform over the schedule, drawn where the generator lives."""
    device = model.device if generator is None else generator.device
    return torch.randint(len(model.schedule), (count,), generator=generator, device=device).to(model.device)


def _filled(prompts: Sequence[str], placeholder: str, vectors: int, letter: str = "x") -> list[str]:
    """Prompts with as many words of one token in the place of the placeholder as it has vectors."""
    if vectors < 1:
        raise ValueError(f"a placeholder stands for at least one vector; got {vectors}")
    words = " ".join([letter] * vectors)
    return [re.sub(rf"\b{re.escape(placeholder)}\b", words, prompt) for prompt in prompts]


@torch.no_grad()
def _places(
    model: LatentDiffusion, prompts: Sequence[str], placeholder: str, vectors: int
) -> Bool[Tensor, "n length"]:
    """Where the vectors go: the tokens that differ between two fillings of the placeholder."""
    one, other = (model.rows(_filled(prompts, placeholder, vectors, letter)) for letter in "xy")
    places = (one != other).any(-1)
    wanted = vectors * sum(len(re.findall(rf"\b{re.escape(placeholder)}\b", prompt)) for prompt in prompts)
    if int(places.sum()) != wanted:
        raise ValueError(f"a prompt is too long for {vectors} vectors in the place of {placeholder!r}")
    return places


def _told(
    model: LatentDiffusion, filled: Sequence[str], places: Bool[Tensor, "n length"], vectors: Vectors
) -> Condition:
    rows: Rows = model.rows(filled).to(vectors.dtype)
    copies = vectors.repeat(int(places.sum()) // len(vectors), 1)
    return model.condition(filled, rows=rows.masked_scatter(places[..., None].expand_as(rows), copies))
