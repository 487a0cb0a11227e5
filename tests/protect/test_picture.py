"""One picture or batch: bounds, tiles, masks, frames and seeds, against optima known in closed form."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attacks import NonFiniteError
from diffusion.choice import Choice, choose, network_precision, pick_device
from imaging.batch.memory import PeakMemory
from imaging.io import Picture, read, write
from protect.methods.mist import Mist
from protect.methods.photoguard import PhotoGuard
from protect.picture import NothingToProtectError, protect_image, read_mask
from protect.surrogate import load_for
from protect.targets import texture
from protect.verify.measures import measure

LEVEL = 1 / 255
TEXTURAL = Mist(semantic_weight=0.0, steps=40)


def integers(height: int, width: int, *, frames: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), generator=generator).to(torch.uint8)


def picture(
    height: int, width: int, *, frames: int = 1, seed: int = 0, alpha: Tensor | None = None
) -> Picture:
    return Picture(integers(height, width, frames=frames, seed=seed), alpha=alpha)


def towards_texture(original: Tensor, levels: int) -> Tensor:
    """Where the textural objective ends in a world that sees pixels: `levels` closer to the target."""
    target = (texture(*original.shape[-2:]) * 255).int()
    return original.int() + (target - original.int()).clamp(-levels, levels)


def protect(image, model, method=TEXTURAL, **options):
    return protect_image(image, method, model, precision="float32", **options)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (64, 64), (65, 200), (150, 131)])
def test_tiles_of_any_size_meet_without_a_seam_in_the_known_optimum(world, height: int, width: int) -> None:
    original = picture(height, width)
    protected = protect(original, world)
    assert torch.equal(protected.integers.int(), towards_texture(original.integers, 8))
    assert world.largest_seen <= world.comfortable


def test_emptying_the_latent_lowers_every_value_by_eps(world) -> None:
    original = picture(70, 90)
    protected = protect(original, world, PhotoGuard(steps=60, eps=12 / 255))
    assert torch.equal(protected.integers.int(), (original.integers.int() - 12).clamp(0))


def test_a_batch_equals_its_pictures_one_by_one(world) -> None:
    images = integers(80, 72, frames=3).float() / 255
    together = protect(images, world, "advdm", steps=5)
    alone = torch.cat([protect(images[i : i + 1], world, "advdm", steps=5) for i in range(3)])
    assert torch.equal(together, alone)


def test_path_picture_and_tensor_agree(world, draw: Callable[..., Path]) -> None:
    path = draw("a.png", 50, 70)
    from_path = protect(path, world, "mist", steps=4)
    assert isinstance(from_path, Picture)
    assert torch.equal(from_path.integers, protect(read(path), world, "mist", steps=4).integers)
    assert torch.equal(from_path.pixels, protect(read(path).pixels, world, "mist", steps=4))


@given(
    st.integers(0, 2**32), st.floats(1, 64), st.sampled_from(["mist", "advdm", "photoguard", "sdst-minus"])
)
def test_the_bound_holds_in_whole_levels_of_the_file(
    pixel_world, tmp_path_factory, seed: int, eps: float, method: str
) -> None:
    original = picture(40, 40, seed=seed % 1000)
    path = tmp_path_factory.mktemp("bound") / "a.png"
    write(
        protect(original, pixel_world, method, steps=3, eps=eps * LEVEL, step_size=eps * LEVEL, seed=seed),
        path,
    )
    change = (read(path).integers.int() - original.integers.int()).abs().max().item()
    assert 0 < change <= eps + 1e-6


def test_sixteen_bits_keep_their_own_finer_bound(world) -> None:
    original = Picture(torch.randint(0, 2**16, (1, 3, 40, 40)).to(torch.uint16))
    protected = protect(original, world, eps=2 / 255)
    assert protected.integers.dtype == torch.uint16
    assert (protected.integers.int() - original.integers.int()).abs().max() == 2 * 257


def test_the_same_seed_gives_the_same_picture_and_another_another(world) -> None:
    original = picture(70, 70)
    one, same, other = (protect(original, world, "advdm", steps=3, seed=seed).integers for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_tile_does_not_depend_on_the_tiles_beside_it(world) -> None:
    wide = integers(64, 120)
    changed = wide.clone()
    changed[..., 64:] = 255 - changed[..., 64:]
    one, other = (protect(Picture(each), world, "mist", steps=3).integers for each in (wide, changed))
    assert torch.equal(one[..., :48], other[..., :48])


def test_masked_pixels_stay_bit_for_bit_and_the_rest_reaches_the_optimum(world) -> None:
    original = picture(90, 100)
    mask = torch.zeros(1, 1, 90, 100)
    mask[..., 20:70, 30:60] = 1
    protected = protect(original, world, mask=mask).integers.int()
    expected = torch.where(mask > 0, towards_texture(original.integers, 8), original.integers.int())
    assert torch.equal(protected, expected)


def test_tiles_that_the_mask_hides_cost_nothing(world) -> None:
    mask = torch.zeros(1, 1, 64, 640)
    mask[..., :30] = 1
    calls = []
    protect(picture(64, 640), world, mask=mask, callback=calls.append)
    assert calls[-1] == 1.0
    assert len(calls) < 3 * TEXTURAL.steps


def test_transparent_pixels_keep_their_hidden_colours_and_alpha_stays(world) -> None:
    alpha = torch.full((1, 1, 40, 80), 255, dtype=torch.uint8)
    alpha[..., :10] = 0
    alpha[..., 10:20] = 7
    original = picture(40, 80, alpha=alpha)
    protected = protect(original, world)
    assert protected.alpha is not None
    assert torch.equal(protected.alpha, alpha)
    assert torch.equal(protected.integers[..., :10], original.integers[..., :10])
    assert torch.equal(protected.integers[..., 10:].int(), towards_texture(original.integers, 8)[..., 10:])


def test_each_frame_is_protected_with_the_same_seed_and_equal_frames_stay_equal(world) -> None:
    frames = integers(40, 40, frames=4)
    frames[2] = frames[1]
    animation = Picture(frames, durations=(10, 20, 30, 40), plays=3)
    protected = protect(animation, world, "advdm", steps=3)
    singles = [protect(Picture(frames[i : i + 1]), world, "advdm", steps=3).integers for i in range(4)]
    assert torch.equal(protected.integers, torch.cat(singles))
    assert (protected.durations, protected.plays) == ((10, 20, 30, 40), 3)


def test_metadata_comes_along(world) -> None:
    original = replace(
        picture(40, 40), icc=b"profile", exif=b"exif", xmp=b"xmp", dpi=(72.0, 72.0), format="TIFF"
    )
    protected = protect(original, world)
    for attribute in ("icc", "exif", "xmp", "dpi", "format"):
        assert getattr(protected, attribute) == getattr(original, attribute)


def test_the_input_is_left_as_it_was(world) -> None:
    original = picture(40, 40)
    before = original.integers.clone()
    images = original.pixels
    protect(original, world)
    protect(images, world)
    assert torch.equal(original.integers, before)
    assert torch.equal(images, original.pixels)


def test_progress_rises_to_one_through_frames_tiles_and_steps(world) -> None:
    shares: list[float] = []
    protect(picture(64, 120, frames=2), world, steps=3, callback=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(set(shares)) == 2 * 2 * 3


def test_an_exception_in_the_callback_stops_the_work(world) -> None:
    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        protect(picture(40, 40), world, callback=stop)


def test_settings_apply_to_a_method_object_too(world) -> None:
    original = picture(40, 40)
    protected = protect(original, world, TEXTURAL, eps=3 / 255)
    assert torch.equal(protected.integers.int(), towards_texture(original.integers, 3))


def test_a_mask_picture_counts_where_it_is_bright_and_painted(tmp_path: Path) -> None:
    white = torch.full((1, 3, 40, 40), 255, dtype=torch.uint8)
    white[..., :10] = 90
    alpha = torch.full((1, 1, 40, 40), 255, dtype=torch.uint8)
    alpha[..., 20:, :] = 0
    write(Picture(white, alpha=alpha), tmp_path / "mask.png")
    where = read_mask(tmp_path / "mask.png")
    assert where[..., :20, 10:].all()
    assert where.sum() == 20 * 30


def test_a_mask_of_another_size_is_refused_with_both_sizes(world) -> None:
    with pytest.raises(ValueError, match=r"the mask is 50 x 40 px and the picture 48 x 40 px"):
        protect(picture(40, 48), world, mask=torch.ones(1, 1, 40, 50))


def test_a_mask_or_transparency_that_hides_everything_is_refused(world) -> None:
    with pytest.raises(NothingToProtectError, match="black everywhere"):
        protect(picture(40, 40), world, mask=torch.zeros(1, 1, 40, 40))
    with pytest.raises(NothingToProtectError, match="fully transparent"):
        protect(picture(40, 40, alpha=torch.zeros(1, 1, 40, 40, dtype=torch.uint8)), world)


def test_a_change_that_rounds_to_nothing_is_an_error_and_not_a_protection(world) -> None:
    with pytest.raises(NothingToProtectError, match="no pixel changed"):
        protect(picture(40, 40), world, "sds-minus", steps=1, step_size=0.2 * LEVEL)
    with pytest.raises(ValueError, match="less than one level"):
        protect(picture(40, 40), world, eps=0.5 * LEVEL)


def test_an_overflowing_model_is_an_error_that_names_step_and_dtype(world) -> None:
    with torch.no_grad():
        world.factor.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="step 0"):
        protect(picture(40, 40), world, "advdm", steps=2)


@pytest.mark.parametrize(
    "images", [torch.rand(3, 40, 40), torch.rand(1, 4, 40, 40), torch.ones(1, 3, 40, 40).byte()]
)
def test_images_of_another_shape_or_type_are_refused(world, images: Tensor) -> None:
    with pytest.raises(ValueError, match="images are float tensors"):
        protect(images, world)


def test_words_for_device_and_precision_are_checked() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'gpu' cannot be used"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used"):
        pick_device("cuda:99")
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        network_precision("half", torch.device("cpu"))  # type: ignore[arg-type]


def test_bfloat16_is_chosen_on_a_cpu_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for capabilities, expected in (({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert network_precision("auto", cpu) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert network_precision("auto", cpu) == torch.float32


def test_a_model_folder_is_loaded_and_bfloat16_keeps_the_bound(tiny_diffusion: Path) -> None:
    original = picture(50, 90)
    protected = protect_image(original, "mist", str(tiny_diffusion), precision="bfloat16", steps=2)
    change = (protected.integers.int() - original.integers.int()).abs()
    assert 0 < change.max() <= 8


def test_a_method_that_needs_no_denoiser_loads_none_unless_asked(tiny_diffusion: Path) -> None:
    choice = choose(str(tiny_diffusion))
    assert choice.label == "model"
    assert not load_for(PhotoGuard(), choice, device="cpu").has_denoiser
    assert load_for(PhotoGuard(), choice, device="cpu", whole=True).has_denoiser
    assert load_for(Mist(), choice, device="cpu").has_denoiser


def test_a_bare_autoencoder_cannot_serve_a_method_that_denoises(tiny_autoencoder: Path) -> None:
    with pytest.raises(ValueError, match=r"vae is an autoencoder alone and Mist needs a denoiser"):
        load_for(Mist(), choose(str(tiny_autoencoder)), device="cpu")


def test_a_models_identity_changes_with_its_weights(tiny_autoencoder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_autoencoder, tmp_path / "vae")
    before = choose(str(tmp_path / "vae")).identity
    assert before == choose(str(tiny_autoencoder)).identity
    (weights,) = (tmp_path / "vae").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert choose(str(tmp_path / "vae")).identity != before


def test_an_alias_is_its_repository_and_an_unknown_name_itself() -> None:
    assert Choice("sd15").identity == "stable-diffusion-v1-5/stable-diffusion-v1-5@main"
    assert (Choice("sd15").label, Choice("no/where").identity) == ("sd15", "no/where")


@pytest.mark.slow
def test_twenty_four_megapixels_run_in_bounded_memory(world) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the high-water mark cannot be set back on this system")
    world.comfortable = 512
    original = picture(4000, 6000)
    before = PeakMemory(world.device).megabytes()
    peak = PeakMemory(world.device)
    protected = protect(original, world, TEXTURAL, steps=1, step_size=8 / 255, random_start=False)
    measured = measure(original, protected)
    # Beside the picture: the result (72 MB), the blended perturbation (288 MB), and a few tiles.
    assert peak.megabytes() - before < 700
    assert measured.linf == pytest.approx(8, abs=1e-3)
    assert torch.equal(
        protected.integers[..., :99, :99].int(), towards_texture(original.integers, 8)[..., :99, :99]
    )
