"""Loading from one file: TAESD pairs and whole checkpoints with their original names, without a network."""

import json

import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import load_file, save_file

import diffusion.single_file
from diffusion.known import KNOWN, MissingWeightsError
from diffusion.latent import Autoencoder
from diffusion.load import available, load


def taesd_halves(folder, channels):
    """Write a random TAESD with its original keys: positions in two sequences of layers."""
    torch.manual_seed(channels)
    reference = AutoencoderTiny(latent_channels=channels).eval()
    for half, shift in (("encoder", 0), ("decoder", 1)):
        state = getattr(reference, half).layers.state_dict()
        keys = {key: f"{int(key.split('.')[0]) + shift}.{key.partition('.')[2]}" for key in state}
        save_file(
            {keys[key]: value.contiguous() for key, value in state.items()},
            folder / f"tae_{half}.safetensors",
        )
    return reference


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("name", ["tae", "tae_encoder.safetensors", "tae_decoder.safetensors"])
def test_distilled_pair_loads_from_either_half_and_from_their_stem(tmp_path, channels, name):
    reference = taesd_halves(tmp_path, channels)
    assert available(str(tmp_path / name))
    model = load(str(tmp_path / name))
    assert isinstance(model, Autoencoder)
    assert (model.name, model.latent_channels, model.multiple) == ("tae", channels, 8)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        z = model.encode(images)
        torch.testing.assert_close(z, reference.encode(2 * images - 1).latents)
        torch.testing.assert_close(model.decode(z, clamp=False), reference.decode(z).sample / 2 + 0.5)


def test_half_a_pair_names_the_other(tmp_path):
    taesd_halves(tmp_path, 4)
    (tmp_path / "tae_decoder.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match=r"there is no file .*tae_decoder.safetensors"):
        load(str(tmp_path / "tae"))
    with pytest.raises(MissingWeightsError, match=r"there is no file .*other.safetensors"):
        load(str(tmp_path / "other.safetensors"))


def original_autoencoder(state, blocks=2):
    """Rename an autoencoder's weights as the original latent diffusion code names them."""
    fixed, renamed = DIFFUSERS_TO_LDM_MAPPING["vae"], {}
    attention = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
    for key, value in state.items():
        new = fixed.get(key, key)
        for i in range(blocks):
            new = new.replace(f"down_blocks.{i}.resnets.", f"down.{i}.block.")
            new = new.replace(f"down_blocks.{i}.downsamplers.0.", f"down.{i}.downsample.")
            new = new.replace(f"up_blocks.{i}.resnets.", f"up.{blocks - 1 - i}.block.")
            new = new.replace(f"up_blocks.{i}.upsamplers.0.", f"up.{blocks - 1 - i}.upsample.")
        new = new.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
        if "attn_1" in new:
            for ours, theirs in attention.items():
                new = new.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        renamed[f"first_stage_model.{new}"] = value.contiguous()
    return renamed


def original_unet(state, blocks=2):
    """Rename a U-Net's weights, of one layer in each block, as the original latent diffusion code names
    them."""
    fixed, renamed = DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"], {}
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    places = {"mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1."}
    places["mid_block.resnets.1."] = "middle_block.2."
    for b in range(blocks):
        places[f"down_blocks.{b}.downsamplers.0.conv."] = f"input_blocks.{2 * b + 2}.0.op."
        places[f"up_blocks.{b}.upsamplers.0.conv."] = f"output_blocks.{2 * b + 1}.1.conv."
        for i in range(2):
            for part, kind in ((0, "resnets"), (1, "attentions")):
                places[f"down_blocks.{b}.{kind}.{i}."] = f"input_blocks.{2 * b + i + 1}.{part}."
                places[f"up_blocks.{b}.{kind}.{i}."] = f"output_blocks.{2 * b + i}.{part}."
    for key, value in state.items():
        new = fixed.get(key, key)
        for ours, theirs in places.items():
            new = new.replace(ours, theirs)
        if ".resnets." in key:
            for ours, theirs in resnet.items():
                new = new.replace(f".{ours}.", f".{theirs}.")
        renamed[f"model.diffusion_model.{new}"] = value.contiguous()
    return renamed


def original_text_encoder(state):
    keys = {key: key if key.startswith("text_model.") else f"text_model.{key}" for key in state}
    return {f"cond_stage_model.transformer.{keys[key]}": value for key, value in state.items()}


def checkpoint(folder, path, **changed):
    """Write the model in `folder` as one file with its original names, some weights `changed`."""
    state = original_autoencoder(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    state |= original_unet(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    state |= original_text_encoder(load_file(folder / "text_encoder" / "model.safetensors"))
    save_file(state | changed, path)
    return str(path)


@pytest.mark.parametrize(("kind", "alias"), [("sd1", "sd15"), ("inpainting", "sd15-inpainting")])
def test_whole_checkpoint_is_the_model_of_its_folder(tmp_path, pipeline, hub, kind, alias):
    folder = pipeline.folder(kind)
    configurations = hub(folder, KNOWN[alias].hub)
    for weights in configurations.rglob("*.safetensors"):
        weights.unlink()
    model = load(checkpoint(folder, tmp_path / "v1-5.safetensors"), offline=True)
    expected = load(str(folder))
    assert (model.name, model.inpaints, model.prediction) == ("v1-5", kind == "inpainting", "epsilon")
    assert model.schedule.timesteps(4) == [751, 501, 251, 1]
    images, mask, z_t, t = (
        torch.rand(1, 3, 16, 16),
        torch.zeros(1, 1, 16, 16),
        torch.randn(1, 4, 8, 8),
        torch.tensor([9]),
    )
    torch.testing.assert_close(model.encode(images), expected.encode(images))
    told = [one.condition(["a cat"]) for one in (model, expected)]
    if kind == "inpainting":
        told = [one.inpainting(part, images, mask) for one, part in zip((model, expected), told, strict=True)]
    torch.testing.assert_close(model.predict(z_t, t, told[0]), expected.predict(z_t, t, told[1]))


def test_autoencoder_of_a_whole_checkpoint_needs_no_configuration(tmp_path, pipeline, monkeypatch):
    tiny = json.loads((pipeline.folder("sd1") / "vae" / "config.json").read_text())
    monkeypatch.setattr(diffusion.single_file, "VAE_CONFIGURATION", tiny)
    model = load(checkpoint(pipeline.folder("sd1"), tmp_path / "v1-5.safetensors"), denoiser=False)
    assert (model.name, model.vae.config.scaling_factor) == ("v1-5", 0.18215)
    images = torch.rand(1, 3, 16, 16)
    expected = load(str(pipeline.folder("sd1")), denoiser=False).encode(images)
    torch.testing.assert_close(model.encode(images), expected)


def test_whole_checkpoint_asks_for_the_configurations_of_its_family(tmp_path, pipeline, hub):
    folder = pipeline.folder("sd1")
    with pytest.raises(
        MissingWeightsError, match="hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --include"
    ):
        load(checkpoint(folder, tmp_path / "a.safetensors"), offline=True)
    nine = {diffusion.single_file.FIRST: torch.zeros(8, 9, 3, 3)}
    with pytest.raises(
        MissingWeightsError, match="hf download stable-diffusion-v1-5/stable-diffusion-inpainting"
    ):
        load(checkpoint(folder, tmp_path / "b.safetensors", **nine), offline=True)
    wide = {diffusion.single_file.TEXT: torch.zeros(8, 1024)}
    with pytest.raises(ValueError, match="does not say if it predicts noise or velocity"):
        load(checkpoint(folder, tmp_path / "c.safetensors", **wide), offline=True)


def test_files_that_hold_something_else_are_named(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(
        ValueError, match="is no whole Stable Diffusion 1, 2 or XL checkpoint and no TAESD half"
    ):
        load(str(tmp_path / "lora.safetensors"))
    (tmp_path / "damaged.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(MissingWeightsError, match=r"damaged.safetensors is damaged"):
        load(str(tmp_path / "damaged.safetensors"))
