"""Training of the instant mode: latents come nearer to the texture's, surrogates stay as they are, and the
export loads."""

from pathlib import Path

import lightning
import pytest
import torch

from experiments import instant
from experiments.instant import InstantTraining
from protect.generator import from_folder
from protect.targets import texture

CONFIG = Path(__file__).parents[2] / "experiments" / "configs" / "builtin_instant.yaml"
SMALL = {"widths": (16, 16), "depths": (1, 1)}


def pictures(count, side):
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)


@pytest.fixture
def training():
    """A small network in training against the built-in model."""
    torch.manual_seed(0)
    module = InstantTraining(**SMALL)
    module.on_fit_start()
    return module


@torch.no_grad()
def distance(module, images):
    """From the texture's latent, told here by the model itself."""
    perturbed, (model,) = (images + 8 / 255 * module.generator(images)).clamp(0, 1), module.surrogates
    target = model.encode(texture(*images.shape[-2:]))
    return torch.stack([(z - target[0]).square().mean() for z in model.encode(perturbed)])


def test_training_pulls_latents_to_the_texture_and_leaves_the_surrogate_alone(training):
    images, (model,) = pictures(2, 64), training.surrogates
    before = distance(training, images)
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(training.generator.parameters(), lr=2e-2)
    for _ in range(20):
        optimizer.zero_grad()
        training.losses(images).mean().backward()
        optimizer.step()
    after = distance(training, images)
    assert (after < 0.9 * before).all(), (before, after)
    assert all(torch.equal(value, frozen[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_score_is_the_logarithm_of_the_distance_of_what_is_perturbed(training, monkeypatch):
    for name in ("smallest_eps", "largest_eps"):
        monkeypatch.setitem(training.hparams, name, 8)
    monkeypatch.setitem(training.hparams, "saved_as_jpeg", 0.0)
    images = pictures(2, 64)
    torch.testing.assert_close(training.losses(images)[0].exp(), distance(training, images))


def test_an_untrained_network_repeats_one_texture_for_all_pictures(training):
    first, second = training.generator(pictures(2, 128))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first[:, :64, :64], first[:, 64:, 64:])


def test_the_checkpoint_holds_the_generator_alone(training):
    assert all(name.startswith("generator.") for name in training.state_dict())


def test_the_export_says_what_the_network_says(training, tmp_path):
    checkpoint = {
        "state_dict": training.state_dict(),
        "hyper_parameters": dict(training.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    instant.export(str(tmp_path / "last.ckpt"), str(tmp_path / "out"))
    network, origin = from_folder(tmp_path / "out")
    images, network.push = pictures(1, 40), training.generator.push  # what is exported is sharper
    with torch.no_grad():
        # float16 on the disk costs less than a tenth of a level of a byte at eps 16
        apart = (network(images) - training.generator(images)).abs().max() * 16
    assert apart < 0.1
    assert origin.surrogates == ("builtin",)
    assert "| `generator.safetensors` |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # Lightning talks through warnings; none of them is about our code
def test_the_recipe_runs_at_toy_size_and_its_export_loads(tmp_path, monkeypatch):
    from PIL import Image

    from experiments.__main__ import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet_sample").mkdir()
    for index, image in enumerate(pictures(16, 64)):
        path = tmp_path / "imagenet_sample" / f"n{10000000 + index}_thing_a.jpg"
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(path)
    toy = {
        "data.root": ".",
        "data.crop": 64,
        "data.short_side": 64,
        "data.batch_size": 2,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.callbacks.every_n_train_steps": 1,
    }
    main(["fit", "--config", str(CONFIG), *(f"--{key}={value}" for key, value in toy.items())])
    instant.export("runs/builtin_instant/last.ckpt", "out")
    network, _ = from_folder(Path("out"))
    assert network(torch.rand(1, 3, 30, 50)).shape == (1, 3, 30, 50)
