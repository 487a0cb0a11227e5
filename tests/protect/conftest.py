"""Small worlds for protection: a model whose optimum is known, tiny random networks on disk, and pictures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffusion.model import Condition, DiffusionModel
from diffusion.schedule import NoiseSchedule
from imaging.io import Picture, write


class PixelWorld(DiffusionModel):
    """`z` is the picture itself and the denoiser halves it: the best perturbation of each pixel is known."""

    def __init__(self, *, comfortable: int = 64, multiple: int = 8) -> None:
        super().__init__(
            NoiseSchedule.linear(),
            prediction="epsilon",
            name="pixel-world",
            multiple=multiple,
            latent_channels=3,
            comfortable=comfortable,
        )
        self.factor = nn.Parameter(torch.tensor(0.5))
        self.largest_seen = 0
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return self

    def encode(self, images: Tensor) -> Tensor:
        assert not any(side % self.multiple for side in images.shape[-2:])
        self.largest_seen = max(self.largest_seen, *images.shape[-2:])
        return images * 1.0

    def decode(self, z: Tensor, *, clamp: bool = True) -> Tensor:
        return z.clamp(0, 1) if clamp else z

    def predict(self, z_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        return self.factor * z_t

    def condition(self, prompts: Sequence[str]) -> Condition:
        return Condition()


@pytest.fixture
def world() -> PixelWorld:
    """A model that sees pixels, comfortable up to 64 px, with sides that are multiples of 8."""
    return PixelWorld()


@pytest.fixture(scope="session")
def pixel_world() -> PixelWorld:
    """The same for tests with many examples, which leave it as it is."""
    return PixelWorld()


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random distilled autoencoder."""
    folder = tmp_path_factory.mktemp("autoencoder") / "vae"
    _autoencoder().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random latent diffusion model in diffusers' layout, comfortable up to 64 px."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    folder = tmp_path_factory.mktemp("diffusion") / "model"
    _autoencoder().save_pretrained(folder / "vae")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
    ).save_pretrained(folder / "unet")
    DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False).save_pretrained(folder / "scheduler")
    _text_encoder(folder)
    return folder


def _autoencoder():
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


def _text_encoder(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    config = CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=len(pieces) - 2,
        eos_token_id=len(pieces) - 1,
        pad_token_id=len(pieces) - 1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(tokenizer, model_max_length=12).save_pretrained(tokenizer)


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Write a random picture, `draw("a.png", 40, 48)`, and return its path."""

    def write_picture(
        name: str, height: int = 40, width: int = 48, *, frames: int = 1, seed: int = 0
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        integers = torch.randint(0, 256, (frames, 3, height, width), generator=generator).to(torch.uint8)
        durations = (100,) * frames if frames > 1 else ()
        write(Picture(integers, durations=durations), path)
        return path

    return write_picture
