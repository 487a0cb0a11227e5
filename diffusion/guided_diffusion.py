"""OpenAI's guided diffusion models (ADM; Dhariwal and Nichol, 2021, NeurIPS, arXiv 2105.05233) from their
original weights.

The names and shapes of the weights say nearly everything about the network. How attention splits into heads
and which noise it was trained for they do not say; both are then taken to be what OpenAI released.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from safetensors.torch import load_file
from torch import Tensor

from diffusion.pixel import PixelDiffusion
from diffusion.schedule import NoiseSchedule
from diffusion.weights import Shapes, shapes_of

State = dict[str, Tensor]

GROUPS = 32
BOTTOM = 8
"""Side of the smallest feature map, in every released network."""
BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
SIGNS = ("input_blocks.0.0.weight", "middle_block.1.qkv.weight", "time_embed.0.weight")


@dataclass(frozen=True)
class Layout:
    """The architecture of a U-Net, as far as its weights tell."""

    width: int
    """Channels that the widths of all levels are multiples of, and numbers that a timestep is coded in."""
    channels: tuple[int, ...]
    """Of each level, from the largest feature map to the smallest."""
    layers: int
    """Residual blocks in each level on the way down; there is one more on the way up."""
    attention: tuple[bool, ...]
    """Which levels attend."""
    in_channels: int
    out_channels: int
    classes: int
    scale_shift: bool
    """Whether the timestep scales and shifts the normalised features, or is added to them."""
    residual_resampling: bool
    """Whether residual blocks go between levels, or single convolutions."""


@dataclass(frozen=True)
class Heads:
    """How attention splits its channels into heads."""

    number: int | None = None
    """Of heads, the same in every level; None for as many as heads of `width` need."""
    width: int = 64
    """Channels of a head."""
    grouped: bool = True
    """Whether the queries, keys and values of one head lie together, as in all networks but OpenAI's 64 pixel
    one, or all queries come first, then all keys, then all values."""

    def count(self, channels: int) -> int:
        """Return how many heads `channels` make."""
        return self.number or channels // self.width


def is_guided_diffusion(shapes: Shapes) -> bool:
    """Return whether a file's weights are named as in OpenAI's guided diffusion."""
    return all(sign in shapes for sign in SIGNS)


def read_guided_diffusion(
    path: Path | str,
    *,
    heads: Heads | None = None,
    schedule: NoiseSchedule | None = None,
    side: int | None = None,
    dtype: torch.dtype | None = None,
) -> PixelDiffusion:
    """Return the model in one `.safetensors` file with the original names of its weights.

    Half of the output of networks that also say a variance is left out.

    Args:
        path: the file.
        heads: what the file does not say about attention. By default OpenAI's of that depth and width: four
            heads in the 128 pixel network, ungrouped ones of 64 channels in the 64 pixel one, grouped ones
            of 64 channels in all others.
        schedule: that it was trained for; by default cosine for the 64 pixel network and linear for others.
        side: of the pictures that it was trained on; by default such that the smallest feature map has 8
            pixels, as in all released networks.
        dtype: of the weights; float32 by default.

    Raises:
        MissingWeightsError: for a file that is absent or damaged.
        ValueError: for a classifier, an upsampler, another network, or heads that do not divide its channels.
    """
    path = Path(path)
    layout = layout_of(shapes_of(path), path)
    cosine, usual = _released(layout)
    unet = build(layout, load_file(path), heads or usual, side or BOTTOM << (len(layout.channels) - 1), path)
    if schedule is None:
        schedule = NoiseSchedule.cosine(clip=1.0) if cosine else NoiseSchedule.linear(clip=1.0)
    return PixelDiffusion(unet.type(dtype or torch.float32), schedule, name=path.stem)


def _released(layout: Layout) -> tuple[bool, Heads]:
    """Return whether the schedule is the cosine one, and the heads, of OpenAI's network of this kind."""
    match len(layout.channels), layout.width:
        case 4, 192:
            return True, Heads(grouped=False)
        case 5, 256:
            return False, Heads(number=4)
    return False, Heads()


def layout_of(shapes: Shapes, path: Path) -> Layout:
    """Read the architecture off names and shapes; `path` is for messages.

    Raises ValueError for anything but a diffusion model's U-Net.
    """
    blocks = {int(key.split(".")[1]) for key in shapes if key.startswith("input_blocks.")}
    if "output_blocks.0.0.in_layers.0.weight" not in shapes or "out.2.weight" not in shapes:
        raise ValueError(
            f"{path} has no way up from its smallest feature map: a classifier, no diffusion model"
        )
    width, in_channels = shapes["time_embed.0.weight"][1], shapes["input_blocks.0.0.weight"][1]
    if in_channels not in (1, 3):
        raise ValueError(f"{path} takes {in_channels} channels; expected pictures of 1 or 3, so no upsampler")
    # between levels the way up has a second residual block or convolution, after attention if there is any
    ups = sorted(int(key.split(".")[1]) for key in shapes if _is_upsampling(key))
    each = ups[0] + 1 if ups else len(blocks)
    starts = range(1, len(blocks), each)
    try:
        channels = tuple(shapes[f"input_blocks.{start}.0.out_layers.3.weight"][0] for start in starts)
        timestep = shapes["input_blocks.1.0.emb_layers.1.weight"][0]
    except KeyError as error:
        raise ValueError(f"{path} lacks {error.args[0]}: no U-Net of guided diffusion") from None
    return Layout(
        width=width,
        channels=channels,
        layers=each - 1,
        attention=tuple(f"input_blocks.{start}.1.qkv.weight" in shapes for start in starts),
        in_channels=in_channels,
        out_channels=shapes["out.2.weight"][0],
        classes=shapes.get("label_emb.weight", (0,))[0],
        scale_shift=timestep == 2 * channels[0],
        residual_resampling=f"input_blocks.{each}.0.in_layers.0.weight" in shapes,
    )


def _is_upsampling(key: str) -> bool:
    parts = key.split(".")
    return parts[0] == "output_blocks" and parts[2] != "0" and parts[3] in ("conv", "in_layers")


def build(layout: Layout, state: State, heads: Heads, side: int, path: Path) -> UNet2DModel:
    """Return diffusers' network with the original weights of `state`; `path` is for messages.

    Raises ValueError if the two do not fit.
    """
    _check_heads(layout, heads, path)
    with torch.device("meta"):  # no memory, and no random weights that are thrown away
        unet = _empty(layout, heads, side)
    converted = _converted(layout, state, heads)
    expected = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in converted.items()}
    for key in expected | given:
        if expected.get(key) != given.get(key):
            raise ValueError(
                f"{path} is no U-Net of guided diffusion that is known here: {key} should be "
                f"{expected.get(key, 'absent')} and is {given.get(key, 'absent')}"
            )
    unet.load_state_dict(converted, assign=True)
    return unet


def _check_heads(layout: Layout, heads: Heads, path: Path) -> None:
    attending = {channels for channels, here in zip(layout.channels, layout.attention, strict=True) if here}
    for channels in sorted(attending | {layout.channels[-1]}):
        if channels % (heads.number or heads.width):
            wanted = f"{heads.number} heads" if heads.number else f"heads of {heads.width} channels"
            raise ValueError(f"{path}: {channels} channels do not split into {wanted}; pass heads=Heads(…)")


def _empty(layout: Layout, heads: Heads, side: int) -> UNet2DModel:
    down, up = "DownBlock2D", "UpBlock2D"
    if layout.residual_resampling:
        down, up = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
    resampling = "resnet" if layout.residual_resampling else "conv"
    unet = UNet2DModel(
        sample_size=side,
        in_channels=layout.in_channels,
        out_channels=layout.out_channels,
        time_embedding_dim=4 * layout.width,
        block_out_channels=layout.channels,
        layers_per_block=layout.layers,
        down_block_types=tuple("AttnDownBlock2D" if here else down for here in layout.attention),
        up_block_types=tuple("AttnUpBlock2D" if here else up for here in reversed(layout.attention)),
        downsample_type=resampling,
        upsample_type=resampling,
        attention_head_dim=heads.width if heads.number is None else layout.channels[-1] // heads.number,
        norm_num_groups=GROUPS,
        attn_norm_num_groups=GROUPS,
        resnet_time_scale_shift="scale_shift" if layout.scale_shift else "default",
        num_class_embeds=layout.classes or None,
    )
    # What a configuration of diffusers cannot say: heads by number, and timesteps wider than the first level.
    for module in unet.modules():
        if isinstance(module, Attention):
            module.heads = heads.count(module.inner_dim)
            module.scale = (module.inner_dim // module.heads) ** -0.5
    if layout.width != layout.channels[0]:
        unet.time_proj = Timesteps(layout.width, flip_sin_to_cos=True, downscale_freq_shift=0)
        unet.time_embedding = TimestepEmbedding(layout.width, 4 * layout.width)
    return unet


def _converted(layout: Layout, state: State, heads: Heads) -> State:
    """Return the weights under diffusers' names; those whose place is unknown keep their own."""
    names: dict[str, str] = {}
    for old, new in _places(layout):
        names[old] = new
        names |= {f"{old}.{theirs}": f"{new}.{ours}" for theirs, ours in (BLOCK | ATTENTION).items()}
    renamed: State = {}
    for key, value in state.items():
        layer, _, end = key.rpartition(".")
        value = value.squeeze(-1) if value.ndim == 3 else value  # a convolution over places, of width 1
        block = names.get(layer.removesuffix(".qkv"))
        if layer.endswith(".qkv") and block is not None:
            parts = zip(("to_q", "to_k", "to_v"), _split(value, heads), strict=True)
            renamed |= {f"{block}.{name}.{end}": part for name, part in parts}
        else:
            renamed[f"{names.get(layer, layer)}.{end}"] = value
    return renamed


def _split(value: Tensor, heads: Heads) -> list[Tensor]:
    """Return the rows of queries, keys and values, head after head."""
    channels = len(value) // 3
    if not heads.grouped:
        return [part.clone() for part in value.chunk(3)]
    count = heads.count(channels)
    by_head = value.unflatten(0, (count, 3, channels // count))
    return [by_head[:, number].flatten(0, 1) for number in range(3)]


def _places(layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield the original name of each block or single layer, and diffusers'."""
    yield from {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }.items()
    levels, layers = len(layout.channels), layout.layers
    for level, attends in enumerate(layout.attention):
        start = level * (layers + 1) + 1
        for layer in range(layers):
            yield f"input_blocks.{start + layer}.0", f"down_blocks.{level}.resnets.{layer}"
            if attends:
                yield f"input_blocks.{start + layer}.1", f"down_blocks.{level}.attentions.{layer}"
        if level < levels - 1:
            old, new = f"input_blocks.{start + layers}.0", f"down_blocks.{level}.downsamplers.0"
            yield (old, new) if layout.residual_resampling else (f"{old}.op", f"{new}.conv")
    for level, attends in enumerate(reversed(layout.attention)):
        start = level * (layers + 1)
        for layer in range(layers + 1):
            yield f"output_blocks.{start + layer}.0", f"up_blocks.{level}.resnets.{layer}"
            if attends:
                yield f"output_blocks.{start + layer}.1", f"up_blocks.{level}.attentions.{layer}"
        if level < levels - 1:
            old = f"output_blocks.{start + layers}.{1 + attends}"
            new = f"up_blocks.{level}.upsamplers.0"
            yield (old, new) if layout.residual_resampling else (f"{old}.conv", f"{new}.conv")
