"""Loading by alias, hub id, folder and file, without a network and without real weights."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffusion.load
from diffusion.cache import download_command, lacking
from diffusion.flow import StableDiffusion3
from diffusion.known import (
    AUTOMATIC,
    AUTOMATIC_INPAINTING,
    KNOWN,
    MissingWeightsError,
    UnknownModelError,
    files_of,
)
from diffusion.latent import Autoencoder, LatentDiffusion
from diffusion.load import available, fingerprint, load, resolve_auto
from diffusion.pixel import PixelDiffusion
from diffusion.schedule import NoiseSchedule


@pytest.fixture
def builtin(pipeline, tmp_path, monkeypatch):
    """The tiny Stable Diffusion, with an inpainting U-Net beside it, in the place of the built-in model."""
    folder = tmp_path / "builtin"
    shutil.copytree(pipeline.folder("sd1"), folder)
    shutil.copytree(pipeline.folder("inpainting") / "unet", folder / "inpainting")
    monkeypatch.setattr(diffusion.load, "BUILTIN", folder)
    return folder


def test_listing_models_and_importing_the_loader_need_nothing_heavy():
    listing = "import sys, diffusion.known; assert 'torch' not in sys.modules"
    loader = "import sys, diffusion.load; assert not {'diffusers', 'transformers'} & set(sys.modules)"
    for code in (listing, loader):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(diffusion.load.__file__).parents[1])


def test_models_are_loaded_whole_by_threads_at_once():
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(load, ["builtin"] * 4))

    assert not any(parameter.is_meta for model in models for parameter in model.parameters())
    assert len(set(map(fingerprint, models))) == 1


def test_table_is_consistent():
    assert all(alias == row.alias for alias, row in KNOWN.items())
    assert {row.kind for row in KNOWN.values()} == {
        "latent",
        "inpainting",
        "instruct",
        "flow",
        "pixel",
        "autoencoder",
    }
    assert all(row.licence and row.protects and row.memory > 0 for row in KNOWN.values())
    assert all(KNOWN[alias].kind in ("latent", "flow") for alias in AUTOMATIC)
    assert all(KNOWN[alias].kind == "inpainting" for alias in AUTOMATIC_INPAINTING)
    hubs = [row.hub for row in KNOWN.values() if row.hub]
    assert len(set(hubs)) == len(hubs)
    assert all(diffusion.load.HUB_ID.fullmatch(hub) for hub in hubs)


def test_builtin_and_its_inpainting_share_all_but_the_network(builtin):
    model, inpainting = load("builtin"), load("builtin-inpainting")
    assert isinstance(model, LatentDiffusion)
    assert (model.name, model.inpaints) == ("builtin", False)
    assert (inpainting.name, inpainting.inpaints) == ("builtin-inpainting", True)
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(model.encode(images), inpainting.encode(images))
    assert available("builtin")
    assert available("builtin-inpainting")


def test_a_missing_builtin_says_what_it_lacks(builtin):
    shutil.rmtree(builtin / "inpainting")
    (builtin / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(
        MissingWeightsError, match=r"'builtin-inpainting' lacks inpainting, vae in .*: install this"
    ):
        load("builtin-inpainting")
    assert not available("builtin")
    assert not available("builtin-inpainting")


@pytest.mark.parametrize(
    ("kind", "expected"), [("sdxl", LatentDiffusion), ("sd3", StableDiffusion3), ("pixel", PixelDiffusion)]
)
def test_folder_loads_under_its_own_name(pipeline, kind, expected):
    model = load(str(pipeline.folder(kind)), dtype=torch.float32)
    assert isinstance(model, expected)
    assert model.name == "model"


def test_cached_repository_loads_without_the_network(hub, pipeline):
    assert not available("sd15")
    hub(pipeline.folder("sd1"), KNOWN["sd15"].hub)
    hub(pipeline.folder("sd2-v"), "somebody/velocity")
    assert available("sd15")
    assert load("sd15").name == "sd15"
    assert load("somebody/velocity", offline=True).prediction == "v"
    assert available("somebody/velocity")


def test_bare_repositories_load_from_their_root(hub, pipeline, tiny_autoencoder, tmp_path):
    hub(tiny_autoencoder[1], "madebyollin/taesd")
    root = tmp_path / "ddpm"
    shutil.copytree(pipeline.folder("pixel") / "unet", root)
    shutil.copy(pipeline.folder("pixel") / "scheduler" / "scheduler_config.json", root)
    shutil.copy(pipeline.folder("pixel") / "model_index.json", root)
    hub(root, "google/ddpm-cifar10-32")
    assert isinstance(load("taesd", offline=True), Autoencoder)
    model = load("ddpm-cifar10", offline=True)
    assert isinstance(model, PixelDiffusion)
    assert model.schedule.clip == 1.0


def test_autoencoder_alone_needs_no_other_part(hub, pipeline):
    folder = hub(pipeline.folder("sd1"), KNOWN["sd15"].hub)
    for part in ("unet", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(folder / part)
    (folder / "model_index.json").unlink()
    assert not available("sd15")
    assert available("sd15", denoiser=False)
    model = load("sd15", denoiser=False, offline=True)
    assert isinstance(model, Autoencoder)
    with pytest.raises(MissingWeightsError, match="hf download"):
        load("sd15", offline=True)


def test_automatic_choice_takes_the_best_model_on_this_computer(hub, pipeline):
    assert resolve_auto() == "builtin"
    assert resolve_auto(inpainting=True) == "builtin-inpainting"
    hub(pipeline.folder("sdxl"), KNOWN["sdxl"].hub)
    assert resolve_auto() == "sdxl"
    hub(pipeline.folder("sd1"), KNOWN["sd15"].hub)
    hub(pipeline.folder("inpainting"), KNOWN["sd15-inpainting"].hub)
    assert resolve_auto() == "sd15"
    assert resolve_auto(inpainting=True) == "sd15-inpainting"


def test_missing_weights_name_the_command_that_fetches_them(hub):
    with pytest.raises(MissingWeightsError) as whole:
        load("sd15", offline=True, revision="abc")
    message = str(whole.value)
    assert "\n" not in message
    start = "stable-diffusion-v1-5/stable-diffusion-v1-5 is not on this computer and offline is set; "
    assert message.startswith(start)
    assert "run: hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --revision abc --include" in message
    assert '--include "unet/diffusion_pytorch_model.safetensors"' in message
    with pytest.raises(MissingWeightsError) as part:
        load("sd15", offline=True, denoiser=False)
    assert str(part.value).endswith(
        '--include "vae/config.json" --include "vae/diffusion_pytorch_model.safetensors"'
    )


def test_a_failed_download_names_the_reason_and_the_command(hub, monkeypatch):
    import huggingface_hub

    def offline(*_, local_files_only=False, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no route to the hub\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    expected = r"was not fetched \(no route to the hub\); when connected run: hf download CompVis/"
    with pytest.raises(MissingWeightsError, match=expected):
        load("sd14")


def test_pixel_models_have_no_autoencoder_to_load_alone(pipeline):
    folder = str(pipeline.folder("pixel"))
    assert available(folder, denoiser=False)
    assert isinstance(load(folder, denoiser=False), PixelDiffusion)


def test_an_interrupted_download_of_shards_is_noticed(hub, pipeline):
    folder = hub(pipeline.folder("sd3"), KNOWN["sd3"].hub)
    part = folder / "text_encoder_3"
    (part / "model.safetensors").rename(part / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    assert lacking(folder) == ["text_encoder_3"]
    assert not available("sd3")


def test_patterns_leave_out_pickles_and_second_copies():
    from fnmatch import fnmatch

    repository = [
        "model_index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "text_encoder_2/model.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "safety_checker/model.safetensors",
        "v1-5-pruned.safetensors",
        "v1-5-pruned.ckpt",
    ]
    for kind in ("latent", None):
        chosen = [name for name in repository if any(fnmatch(name, pattern) for pattern in files_of(kind))]
        assert chosen == [repository[i] for i in (0, 1, 2, 5, 7, 9)]
    assert "--include" in download_command("a/b", files_of("flow"), "main")


def test_unknown_names_get_the_nearest_and_the_list(hub):
    with pytest.raises(
        UnknownModelError, match=r"unknown model 'sdlx'; did you mean 'sdxl'.*known: builtin, .*"
    ):
        load("sdlx")
    with pytest.raises(UnknownModelError, match=r"there is no folder or file './nowhere'"):
        load("./nowhere")
    assert not available("sdlx")


def test_pickles_are_refused(tmp_path, pipeline):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(
        MissingWeightsError, match="may run code when read and is refused: convert it to safetensors"
    ):
        load(str(tmp_path / "model.ckpt"))
    folder = tmp_path / "folder"
    shutil.copytree(pipeline.folder("sd1"), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(MissingWeightsError, match=r"diffusion_pytorch_model.bin may run code when read"):
        load(str(folder))
    assert not available(str(folder))


def test_damaged_files_are_named_in_one_line(tmp_path, pipeline):
    for part, file in [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")]:
        folder = tmp_path / part
        shutil.copytree(pipeline.folder("sd1"), folder)
        weights = folder / part / f"{file}.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(
            MissingWeightsError, match=f"{part} cannot be read .*: fetch its weights again"
        ) as error:
            load(str(folder))
        assert "\n" not in str(error.value)
    (tmp_path / "unet" / "vae" / "config.json").write_text("{")
    with pytest.raises(MissingWeightsError, match=r"vae/config.json is damaged"):
        load(str(tmp_path / "unet"), denoiser=False)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_incomplete_weights_are_not_filled_up_at_random(tmp_path, pipeline, part):
    folder = tmp_path / "model"
    shutil.copytree(pipeline.folder("sd1"), folder)
    weights = folder / f"{part}.safetensors"
    state = load_file(weights)
    lost = next(key for key in sorted(state) if key.endswith("weight"))
    del state[lost]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(MissingWeightsError, match=r"lacks weights, such as .*: fetch them again"):
        load(str(folder))


def test_folders_that_hold_something_else_are_named(tmp_path, pipeline):
    with pytest.raises(
        MissingWeightsError, match=r"has no config.json: expected a model in diffusers' layout"
    ):
        load(str(tmp_path))
    with pytest.raises(ValueError, match="holds a bare UNet2DConditionModel; expected AutoencoderKL"):
        load(str(pipeline.folder("sd1") / "unet"))


def test_half_precision_copies_are_read_where_they_are_all_there_is(tmp_path, pipeline):
    folder = tmp_path / "half"
    shutil.copytree(pipeline.folder("sd1"), folder)
    for weights in folder.rglob("*.safetensors"):
        weights.rename(weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))
    assert not lacking(folder)
    z_t, t = torch.randn(1, 4, 8, 8), torch.tensor([5])
    expected = load(str(pipeline.folder("sd1"))).predict(z_t, t)
    torch.testing.assert_close(load(str(folder)).predict(z_t, t), expected)


def test_fingerprint_tells_weights_apart_and_repeats(pipeline):
    first, again = (load(str(pipeline.folder("sd1"))) for _ in range(2))
    assert fingerprint(first) == fingerprint(again)
    assert len(fingerprint(first)) == 12
    again.unet.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    assert fingerprint(first) != fingerprint(again)


def test_loading_is_quiet(pipeline, tiny_autoencoder, capfd):
    pipeline.folder("sd3")
    capfd.readouterr()
    load(str(pipeline.folder("sd3")))
    load(str(tiny_autoencoder[1]))
    out, err = capfd.readouterr()
    assert out == err == ""


def test_schedule_of_a_loaded_model_is_that_of_its_folder(pipeline):
    schedule = load(str(pipeline.folder("sd1"))).schedule
    torch.testing.assert_close(schedule.alphas_cumprod, NoiseSchedule.scaled_linear().alphas_cumprod)
    assert schedule.timesteps(4) == [751, 501, 251, 1]
    assert schedule.clip is None
