"""Tiny random models of every class, written to disk as diffusers writes them, so that the loading code is
real."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from huggingface_hub import constants
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def vae(channels: int = 4, **config) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **config,
    )


def taesd(channels: int = 4) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=channels,
    )


def unet(channels: int = 4, **config) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        **{"attention_head_dim": 4, "cross_attention_dim": 16, **config},
    )


def clip(*, projection: bool = False, width: int = 16) -> CLIPTextModel | CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=width,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
        pad_token_id=2 * len(LETTERS) + 1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    pieces = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=12, pad_token=pad)


def t5(width: int = 32) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=200,
            d_model=width,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def t5_tokenizer() -> T5TokenizerFast:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5TokenizerFast(vocab=[*special, *((letter, -3.0) for letter in LETTERS)], extra_ids=0)


def stable_diffusion(tokenizers: Path, scheduler=None, **parts) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=parts.get("vae") or vae(),
        unet=parts.get("unet") or unet(),
        scheduler=scheduler or PNDMScheduler(**SD15, skip_prk_steps=True),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(tokenizers),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def velocity(tokenizers: Path) -> StableDiffusionPipeline:
    scheduler = DDIMScheduler(**SD15, clip_sample=False, prediction_type="v_prediction")
    return stable_diffusion(tokenizers, scheduler)


def inpainting(tokenizers: Path) -> StableDiffusionInpaintPipeline:
    parts = stable_diffusion(tokenizers, unet=unet(9)).components
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def distilled(tokenizers: Path, channels: int = 4) -> StableDiffusionPipeline:
    """A pipeline that draws no noise but its first: its autoencoder has no posterior."""
    scheduler = DDIMScheduler(**SD15, clip_sample=False)
    return stable_diffusion(tokenizers, scheduler, vae=taesd(), unet=unet(channels))


def distilled_inpainting(tokenizers: Path) -> StableDiffusionPipeline:
    return distilled(tokenizers, 9)


def instruct(tokenizers: Path) -> StableDiffusionPipeline:
    return stable_diffusion(tokenizers, unet=unet(8))


def sdxl(tokenizers: Path) -> StableDiffusionXLPipeline:
    told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "cross_attention_dim": 32}
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        unet=unet(**told, projection_class_embeddings_input_dim=6 * 4 + 16),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(tokenizers),
        text_encoder_2=clip(projection=True),
        tokenizer_2=clip_tokenizer(tokenizers, pad="z"),
        add_watermarker=False,
    )


def sd3(tokenizers: Path, *, with_t5: bool = True) -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=48,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(projection=True),
        tokenizer=clip_tokenizer(tokenizers),
        text_encoder_2=clip(projection=True),
        tokenizer_2=clip_tokenizer(tokenizers),
        text_encoder_3=t5(48) if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )


def sd3_without_t5(tokenizers: Path) -> StableDiffusion3Pipeline:
    return sd3(tokenizers, with_t5=False)


def flux(tokenizers: Path, *, guided: bool = True) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guided,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if guided else 1.0, use_dynamic_shifting=guided),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(tokenizers),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def flux_schnell(tokenizers: Path) -> FluxPipeline:
    return flux(tokenizers, guided=False)


def pixel(_: Path) -> DDPMPipeline:
    return DDPMPipeline(
        UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        DDPMScheduler(),
    )


BUILDERS: dict[str, Callable] = {
    "sd1": stable_diffusion,
    "sd2-v": velocity,
    "inpainting": inpainting,
    "instruct": instruct,
    "distilled": distilled,
    "distilled-inpainting": distilled_inpainting,
    "sdxl": sdxl,
    "sd3": sd3,
    "sd3-without-t5": sd3_without_t5,
    "flux": flux,
    "flux-schnell": flux_schnell,
    "pixel": pixel,
}


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """`pipeline("sd1")` is a random diffusers pipeline, and `pipeline.folder("sd1")` where it was saved."""
    return Pipelines(tmp_path_factory)


class Pipelines:
    def __init__(self, tmp_path_factory) -> None:
        self._tmp = tmp_path_factory
        self._made: dict[str, tuple] = {}

    def __call__(self, kind: str):
        return self._make(kind)[0]

    def folder(self, kind: str) -> Path:
        return self._make(kind)[1]

    def _make(self, kind: str) -> tuple:
        if kind not in self._made:
            torch.manual_seed(0)
            made = BUILDERS[kind](self._tmp.mktemp("tokenizer"))
            folder = self._tmp.mktemp(kind) / "model"
            made.save_pretrained(folder)
            made.set_progress_bar_config(disable=True)
            for part in made.components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval()
            self._made[kind] = (made, folder)
        return self._made[kind]


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory):
    """A distilled autoencoder, and the folder it was saved in."""
    torch.manual_seed(0)
    model, folder = taesd().eval(), tmp_path_factory.mktemp("taesd")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache; `hub(folder, "owner/name")` puts a folder in it as a download would."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder, repository):
        place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / ("0" * 40))
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("0" * 40)
        return place / "snapshots" / ("0" * 40)

    return put
