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
def recorded_attention(network: nn.Module) -> Iterator[list[AttentionMap]]:
    """Record every attention map of what runs inside, in the order in which the layers run.

    Layers compute their maps openly meanwhile, which costs more memory than their usual way, and are set
    back afterwards. Do not record through `enable_checkpointing`, whose second pass would be recorded, too.
    """
    maps: list[AttentionMap] = []
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Attention)}
    before = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.set_processor(AttnProcessor())
            layer.get_attention_scores = _recording(name, layer, maps)  # pyrefly: ignore
        yield maps
    finally:
        for name, layer in layers.items():
            layer.set_processor(before[name])
            vars(layer).pop("get_attention_scores", None)


def _recording(name: str, layer: Attention, maps: list[AttentionMap]) -> Any:
    compute = type(layer).get_attention_scores

    def scores(*given: Any) -> Tensor:
        weights = compute(layer, *given)
        maps.append(AttentionMap(name, layer.is_cross_attention, weights.unflatten(0, (-1, layer.heads))))
        return weights

    return scores
