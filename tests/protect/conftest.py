"""Small worlds for protection: a model whose optimum is known, tiny random networks on disk, and pictures."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class InpaintingWorld(DiffusionModel):
    """Two by two pixels are a latent and the denoiser mixes channels, both linear, so gradients are known.

    The denoiser is told, beside the noisy latent, the hole and the latent of what is around it.
    """

    inpaints = True

    def __init__(self, *, prediction="epsilon", schedule: NoiseSchedule | None = None) -> None:
        super().__init__(
            schedule or NoiseSchedule.scaled_linear(),
            prediction=prediction,
            name="inpainting-world",
            multiple=2,
            latent_channels=2,
            comfortable=64,
        )
        generator = torch.Generator().manual_seed(4)
        draw = {"generator": generator, "dtype": torch.float64}
        self.reading = nn.Parameter(torch.randn(2, 3, 2, 2, **draw))
        self.writing = nn.Parameter(torch.randn(2, 3, 2, 2, **draw) / 4)
        self.mixing = nn.Parameter(torch.randn(2, 5, 1, 1, **draw))
        self.calls = {"encode": 0, "predict": 0}
        self.times: list[int] = []
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return self

    def encode(self, images: Tensor) -> Tensor:
        self.calls["encode"] += 1
        return 0.3 * F.conv2d(images.double(), self.reading, stride=2)

    def decode(self, z: Tensor, *, clamp: bool = True) -> Tensor:
        images = F.conv_transpose2d(z, self.writing, stride=2)
        return images.clamp(0, 1) if clamp else images

    def predict(self, z_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        self.calls["predict"] += 1
        self.times.append(int(t[0]))
        told = self.told(condition, len(z_t))
        nothing = z_t.new_zeros(len(z_t), 3, *z_t.shape[-2:])
        seen = torch.cat([z_t, nothing if told.concat is None else told.concat], 1)
        wish = 0.0 if told.tokens is None else told.tokens.mean((1, 2)).view(-1, 1, 1, 1)
        return F.conv2d(seen, self.mixing) + wish

    def inpainting(self, condition: Condition, images: Tensor, mask: Tensor) -> Condition:
        seen = self.encode(torch.where(mask >= 0.5, 0.5, images))
        hole = F.max_pool2d((mask >= 0.5).to(seen), 2).expand(len(seen), -1, -1, -1)
        return replace(condition, concat=torch.cat([hole, seen], 1))

    def condition(self, prompts: Sequence[str]) -> Condition:
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts], dtype=torch.float64)
        return Condition(tokens=lengths.view(-1, 1, 1))

    def to_pixels(self, gradient: Tensor) -> Tensor:
        """The transpose of the encoder's Jacobian applied to a latent gradient."""
        return 0.3 * F.conv_transpose2d(gradient, self.reading, stride=2)


@pytest.fixture
def inpainting_world() -> type[InpaintingWorld]:
    """A class of linear models that are made for inpainting, with sides that are multiples of 2."""
    return InpaintingWorld


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


@pytest.fixture(scope="session")
def tiny_inpainting(tiny_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same with a denoiser that is made for inpainting."""
    from diffusers import UNet2DConditionModel

    folder = tmp_path_factory.mktemp("inpainting") / "model"
    shutil.copytree(tiny_diffusion, folder)
    torch.manual_seed(0)
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")
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
