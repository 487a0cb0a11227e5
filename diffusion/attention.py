"""What a U-Net attends to, recorded while it runs: which places look at which words, and at which places."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor
from jaxtyping import Float
from torch import Tensor, nn

Weights = Float[Tensor, "batch heads queries keys"]


@dataclass(frozen=True)
class AttentionMap:
    """The attention of one layer in one call of the network."""

    layer: str
    """Its name within the network, such as "up_blocks.1.attentions.0.transformer_blocks.0.attn2"."""
    cross: bool
    """Whether it looks at the condition's tokens, not at the picture."""
    weights: Weights
    """Sums to 1 over the keys; on the graph of the call."""

    @property
    def queries(self) -> int:
        """How many places look."""
        return self.weights.shape[2]


@contextmanager
def recorded_attention(
    network: nn.Module, *, cross_only: bool = False, most_queries: int | None = None
) -> Iterator[list[AttentionMap]]:
    """Record every attention map of what runs inside, in the order in which the layers run.

    `cross_only` leaves those out that look at the picture, and `most_queries` those from more places.

    Layers compute their maps openly meanwhile, which costs more memory than their usual way, and are set
    back afterwards. Do not record through `enable_checkpointing`, whose second pass would be recorded, too.
    """
    maps: list[AttentionMap] = []
    layers = attentions(network, cross_only=cross_only)
    before = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.set_processor(AttnProcessor())
            layer.get_attention_scores = _recording(name, layer, maps, most_queries)  # pyrefly: ignore
        yield maps
    finally:
        for name, layer in layers.items():
            layer.set_processor(before[name])
            vars(layer).pop("get_attention_scores", None)


def attentions(network: nn.Module, *, cross_only: bool = False) -> dict[str, Attention]:
    """Return the attention layers of a network by name; `cross_only` those that look at a condition."""
    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, Attention)}
    return {name: layer for name, layer in found.items() if layer.is_cross_attention or not cross_only}


def _recording(name: str, layer: Attention, maps: list[AttentionMap], most: int | None) -> Any:
    compute = type(layer).get_attention_scores

    def scores(*given: Any) -> Tensor:
        weights = compute(layer, *given)
        if most is None or weights.shape[1] <= most:
            by_head = weights.unflatten(0, (-1, layer.heads))
            maps.append(AttentionMap(name, layer.is_cross_attention, by_head))
        return weights

    return scores
