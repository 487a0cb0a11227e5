"""The recipe of the built-in model at toy size: every YAML runs, resumes, exports, and the result loads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
# Lightning talks through warnings (few workers, small batches); none of them is about our code.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the layout that the recipe expects, filled with smooth random pictures."""
    from PIL import Image

    root, generator = tmp_path_factory.mktemp("data"), torch.Generator().manual_seed(0)
    names = [f"imagenet_sample/n{10000000 + i}_thing_{'ab'[i % 2]}.jpg" for i in range(16)]
    names += [f"images/{who}0{i}.jpg" for who in ("canaletto", "monet", "signac", "vangogh") for i in (1, 2)]
    for name in names:
        coarse = torch.rand(1, 3, 5, 5, generator=generator)
        image = torch.nn.functional.interpolate(coarse, size=(64, 72), mode="bicubic").clamp(0, 1)[0]
        path = root / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(path, quality=95)
    return root


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        yield


def fit(name, data, *more):
    from experiments.__main__ import main

    toy = {
        "data.root": data,
        "data.crop": 64,
        "data.short_side": 64,
        "data.batch_size": 2,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.limit_val_batches": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_model_summary": "false",
        "trainer.callbacks.every_n_train_steps": 1,
    }
    flags = [part for key, value in toy.items() for part in (f"--{key}", str(value))]
    main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *flags, *more])
    return Path("runs") / name


def steps_logged(run):
    lines = (run / "log" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    return [int(line.split(",")[column]) for line in lines[1:]]


def test_the_recipe_makes_a_model_that_loads_and_denoises(data, workplace):
    from diffusion.load import load
    from experiments import builtin, tokenizer

    fit("builtin_autoencoder", data)
    run = fit("builtin_autoencoder_finish", data)
    builtin.export_autoencoder(str(run / "last.ckpt"), str(data), "runs/builtin")
    tokenizer.main(str(data), "runs/builtin/tokenizer")
    run = fit("builtin_denoiser", data)
    builtin.export_denoiser(str(run / "last.ckpt"), "runs/builtin")
    run = fit("builtin_inpainting", data)
    builtin.export_inpainting(str(run / "last.ckpt"), "runs/builtin")
    before = load_file("runs/builtin/vae/diffusion_pytorch_model.safetensors")
    run = fit("builtin_decoder", data)
    builtin.export_autoencoder(str(run / "last.ckpt"), str(data), "runs/builtin")
    after = load_file("runs/builtin/vae/diffusion_pytorch_model.safetensors")
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"decoder", "post_quant_conv"}

    model = load("runs/builtin")
    images = torch.rand(2, 3, 64, 64)
    z = model.encode(images)
    assert model.decode(z).shape == images.shape
    noise = model.predict_noise(z, torch.tensor([10, 900]), model.condition(["a photo"]))
    assert noise.shape == z.shape
    assert torch.isfinite(noise).all()


def test_a_denoiser_learns_on_the_latents_of_another_autoencoder(data, workplace):
    from diffusers import AutoencoderTiny

    from diffusion.load import load
    from experiments import builtin, tokenizer

    torch.manual_seed(1)
    tiny = AutoencoderTiny(latent_channels=16)
    tiny.save_pretrained("runs/tiny")
    tokenizer.main(str(data), "runs/tokenizer")
    given = {"model.autoencoder": "runs/tiny", "model.tokenizer": "runs/tokenizer", "seed_everything": 1}
    given["model.block_out_channels"] = [16, 32]
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    # a checkpoint that an earlier run left would keep its name
    Path("runs/builtin_denoiser/last.ckpt").unlink(missing_ok=True)
    run = fit("builtin_denoiser", data, *flags)
    builtin.export_denoiser(str(run / "last.ckpt"), "runs/surrogate")
    model = load("runs/surrogate")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(images), tiny.eval().encode(2 * images - 1).latents)
    noise = model.predict_noise(model.encode(images), torch.tensor([500]), model.condition(["a photo"]))
    assert noise.shape == (1, 16, 8, 8)
    assert noise.isfinite().all()


def test_a_run_resumes_where_it_stopped(data, workplace):
    run = fit("builtin_autoencoder", data)
    fit("builtin_autoencoder", data, "--trainer.max_steps", "4", "--ckpt_path", str(run / "last.ckpt"))
    assert max(steps_logged(run)) == 3
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4
