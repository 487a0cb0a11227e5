import pytest
import torch
from diffusers import UNet2DModel

from diffusion.folder import read_folder
from diffusion.pixel import PixelDiffusion
from diffusion.schedule import NoiseSchedule


def small_unet(**config):
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        **config,
    )


def test_pipeline_folder_and_bare_folder_are_the_same_model(pipeline):
    pipe, folder = pipeline("pixel"), pipeline.folder("pixel")
    whole, bare = read_folder(folder, name="whole"), read_folder(folder / "unet", name="bare")
    z_t, t = torch.randn(2, 3, 16, 16), torch.tensor([0, 999])
    expected = pipe.unet(z_t, t).sample
    for model in (whole, bare):
        assert isinstance(model, PixelDiffusion)
        assert (model.prediction, model.multiple, model.comfortable) == ("epsilon", 2, 16)
        assert model.schedule.clip == 1.0
        torch.testing.assert_close(model.schedule.alphas_cumprod, pipe.scheduler.alphas_cumprod)
        torch.testing.assert_close(model.predict(z_t, t), expected)


def test_encode_and_decode_are_inverse(pipeline):
    model, images = read_folder(pipeline.folder("pixel"), name="pixel"), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model.decode(model.encode(images)), images)
    assert model.decode(torch.full((1, 3, 16, 16), -3.0), clamp=False).min() == -1
    with pytest.raises(ValueError, match="pixel takes images whose sides are multiples of 2; got 16x15"):
        model.encode(images[..., 1:])


def test_unconditional_model_ignores_prompts(pipeline):
    model = read_folder(pipeline.folder("pixel"), name="pixel")
    z_t, t = torch.randn(1, 3, 16, 16), torch.tensor([5])
    torch.testing.assert_close(model.predict(z_t, t, model.condition(["a cat"])), model.predict(z_t, t))


def test_classes_are_prompts_made_of_their_number():
    unet = small_unet(num_class_embeds=10)
    model = PixelDiffusion(unet, NoiseSchedule.linear(), name="classes")
    z_t, t = torch.randn(2, 3, 8, 8), torch.tensor([5, 6])
    expected = unet(z_t, t, class_labels=torch.tensor([3, 7])).sample
    torch.testing.assert_close(model.predict(z_t, t, model.condition(["3", "7"])), expected)
    one = model.predict(z_t, t, model.condition(["3"]))
    torch.testing.assert_close(one[0], expected[0])
    with pytest.raises(ValueError, match="classes expects a class from 0 to 9; got 'a cat'"):
        model.condition(["a cat"])
    with pytest.raises(ValueError, match="classes needs a class"):
        model.predict(z_t, t)


def test_predicted_variance_is_left_out():
    unet = small_unet(out_channels=6)
    model = PixelDiffusion(unet, NoiseSchedule.linear(), name="variance")
    z_t, t = torch.randn(2, 3, 8, 8), torch.tensor([5, 6])
    torch.testing.assert_close(model.predict(z_t, t), unet(z_t, t).sample[:, :3])


def folded(**more):
    """A network on two-by-two patches, told one of three named classes or none."""
    torch.manual_seed(0)
    unet = small_unet(in_channels=12, out_channels=12, num_class_embeds=4)
    return PixelDiffusion(
        unet, NoiseSchedule.linear(), name="folded", labels=("cat", "dog", "ship"), patch=2, **more
    )


def test_patches_only_reorder_pixels():
    model, images = folded(), torch.rand(2, 3, 16, 8)
    z = model.encode(images)
    assert z.shape == (2, 12, 8, 4)
    torch.testing.assert_close(z.flatten(1).sort().values, (2 * images - 1).flatten(1).sort().values)
    torch.testing.assert_close(model.decode(z), images)
    assert (model.multiple, model.comfortable, model.latent_channels) == (2, 16, 12)
    with pytest.raises(ValueError, match="multiples of 2; got 15x8"):
        model.encode(images[:, :, 1:])


def test_no_class_is_the_last_embedding_and_names_are_prompts():
    model = folded()
    z_t, t = torch.randn(2, 12, 8, 8), torch.tensor([5, 6])
    nothing = model.unet(z_t, t, class_labels=torch.tensor([3, 3])).sample
    torch.testing.assert_close(model.predict(z_t, t), nothing)
    torch.testing.assert_close(model.predict(z_t, t, model.condition([""])), nothing)
    assert torch.equal(model.condition(["ship", "1"]).labels, torch.tensor([2, 1]))
    with pytest.raises(ValueError, match="a class from 0 to 2 or one of cat, dog, ship; got 'frog'"):
        model.condition(["frog"])
    with pytest.raises(ValueError, match="folded expects"):
        model.condition(["3"])


def test_labels_must_match_the_embeddings():
    with pytest.raises(ValueError, match="embeds 4 classes; got 2 labels"):
        PixelDiffusion(
            small_unet(num_class_embeds=4), NoiseSchedule.linear(), name="odd", labels=("cat", "dog")
        )


def test_labels_and_patch_survive_a_folder(tmp_path):
    from experiments.pixel_denoiser import SCHEDULE, save

    save(folded().unet, tmp_path, labels=("cat", "dog", "ship"), patch=2)
    model, expected = read_folder(tmp_path, name="saved"), folded(prediction="v")
    assert SCHEDULE["prediction_type"] == "v_prediction"
    assert (model.labels, model.patch, model.prediction) == (expected.labels, 2, "v")
    z_t, t = torch.randn(2, 12, 8, 8), torch.tensor([5, 600])
    torch.testing.assert_close(model.predict(z_t, t), expected.predict(z_t, t), rtol=1e-2, atol=1e-2)
