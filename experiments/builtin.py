"""Turn training checkpoints into the built-in model: diffusers layout, weights as float16 safetensors.

python -m experiments.builtin autoencoder CHECKPOINT ROOT OUT   writes OUT/vae
python -m experiments.builtin denoiser CHECKPOINT OUT           writes OUT/unet and what goes with it
python -m experiments.builtin inpainting CHECKPOINT OUT         writes OUT/inpainting
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler

from experiments.autoencoder import AutoencoderTraining
from experiments.denoiser import SCHEDULE, DenoiserTraining
from experiments.pictures import Source, load_examples

CALIBRATION = [Source("imagenet_sample/*.jpg")]


@torch.no_grad()
def normalise_latents(autoencoder: AutoencoderKL, images: list[torch.Tensor]) -> None:
    """Fold an affine map into the 1x1 convolutions around the latent: each channel gets mean 0, deviation 1.

    Exact: the posterior's mean and variance transform together, and decoding undoes it. Images are in [0,1].
    """
    latents = [
        autoencoder.encode(2 * image - 1).latent_dist.mean.transpose(0, 1).flatten(1) for image in images
    ]
    values = torch.cat(latents, 1)
    mean, deviation = values.mean(1), values.std(1)
    quant, post = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(mean)
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= deviation.view(1, -1, 1, 1)
    quant.bias[:channels] -= mean
    quant.bias[:channels] /= deviation
    quant.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    quant.bias[channels:] -= 2 * deviation.log()


def export_autoencoder(checkpoint: str, root: str, out: str) -> None:
    module = AutoencoderTraining.load_from_checkpoint(checkpoint, map_location="cpu", start_from=None)
    autoencoder = module.autoencoder.eval()
    # a decoder trained alone came with a scaled encoder, which denoisers may have met: it stays bit for bit
    if not module.hparams.decoder_only:
        training, _ = load_examples(Path(root), CALIBRATION, short_side=256)
        normalise_latents(autoencoder, [example.pixels[None] / 255 for example in training[::8]])
    autoencoder.register_to_config(scaling_factor=1.0)
    autoencoder.half().save_pretrained(Path(out) / "vae")


def export_denoiser(checkpoint: str, out: str) -> None:
    module = DenoiserTraining.load_from_checkpoint(checkpoint, map_location="cpu")
    folder, vae = Path(out), module.codec.vae
    if not (folder / "vae").exists():  # trained on the latents of another's autoencoder
        vae.save_pretrained(folder / "vae")
    module.unet.half().save_pretrained(folder / "unet")
    module.text_encoder.half().save_pretrained(folder / "text_encoder")
    module.tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "vae": ["diffusers", type(vae).__name__],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def export_inpainting(checkpoint: str, out: str) -> None:
    module = DenoiserTraining.load_from_checkpoint(checkpoint, map_location="cpu", start_from=None)
    module.unet.half().save_pretrained(Path(out) / "inpainting")


if __name__ == "__main__":
    exports = {
        "autoencoder": export_autoencoder,
        "denoiser": export_denoiser,
        "inpainting": export_inpainting,
    }
    exports[sys.argv[1]](*sys.argv[2:])
