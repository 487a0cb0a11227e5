"""Every detector through the same door: one logit per picture, whatever stands beside it, kept and loaded."""

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils import estimator_checks
from torch.nn.functional import interpolate

from detect.clip import centre
from detect.detector import DETECTORS, DetectorError, create, load
from detect.equalise import Equaliser
from detect.estimator import DetectorEstimator
from detect.frequency import block_statistics
from detect.metrics import auroc
from detect.npr import NprDetector, neighbour_residual
from detect.reconstruction import ReconstructionDetector, local_distance, round_trip
from diffusion.load import load as load_model
from diffusion.model import PixelSpace
from diffusion.schedule import NoiseSchedule

NARROW = {"blocks": (1, 1), "width": 8, "bottleneck": False, "small": True}
LEARNS = {"epochs": 3, "learning_rate": 3e-3}
SMALL = {
    "clip": {},
    "cnndetection": {"network": NARROW, **LEARNS},
    "dire": {"network": NARROW, **LEARNS},
    "distildire": {"network": NARROW, **LEARNS},
    "frequency": {},
    "npr": {"blocks": (1, 1), "epochs": 3, "learning_rate": 1e-3},
    "reconstruction": {},
}


def test_every_detector_of_the_table_is_tested():
    assert set(SMALL) == set(DETECTORS)


@pytest.fixture(scope="module")
def upsampled():
    """Drawn pictures, and others of the same kind that were doubled in size as generators do it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(120, 3, 32, 32, generator=generator)
    real = interpolate(noise[:60, :, ::2, ::2], size=[32, 32], mode="bicubic", align_corners=False)
    real = (real + 0.05 * torch.randn(real.shape, generator=generator)).clamp(0, 1)
    small = interpolate(noise[60:], size=[16, 16], mode="bilinear", antialias=True, align_corners=False)
    generated = interpolate(small, size=[32, 32], mode="nearest")
    return torch.cat([real, generated]), torch.tensor([0] * 60 + [1] * 60)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """What each detector is made with; those that look through a diffusion model get a tiny one."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("prior")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    encoder = tmp_path_factory.mktemp("clip")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(**shape, image_size=32, patch_size=8, projection_dim=12)
    CLIPVisionModelWithProjection(config).save_pretrained(encoder)
    models = {"dire": folder, "distildire": folder, "clip": encoder}
    return {
        name: {**own, **({"model": str(models[name])} if name in models else {})}
        for name, own in SMALL.items()
    }


@pytest.fixture(params=SMALL)
def detector(request, upsampled, settings):
    torch.manual_seed(0)
    made = create(request.param, **settings[request.param])
    made.learn(*upsampled, generator=torch.Generator().manual_seed(0))
    return made


def test_a_logit_does_not_depend_on_neighbours_order_or_batch(detector, upsampled):
    images = upsampled[0][50:70]
    whole = detector.scores(images)
    assert whole.shape == (20,)
    # forty calls of a network add up what rounding does in batches of another size
    close = {"atol": 1e-4 if detector.kind == "dire" else 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(detector.scores(images, batch_size=3), whole, **close)
    torch.testing.assert_close(detector.scores(images.flip(0), batch_size=8).flip(0), whole, **close)


def test_a_detector_is_the_same_after_saving_and_loading(detector, upsampled, tmp_path):
    images, labels = upsampled
    logits = detector.scores(images)
    if auroc(labels.numpy(), logits.numpy()) > 0.5:
        detector.calibrate(images, labels, data="drawn")
    detector.trained_on, detector.sides = "drawn pictures", (32, 32)
    detector.equaliser = Equaliser(lowest_quality=60)
    detector.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert torch.equal(again.scores(images), logits)
    assert (again.identity, again.calibration) == (detector.identity, detector.calibration)
    assert again.equaliser == detector.equaliser
    assert (again.trained_on, again.sides) == ("drawn pictures", (32, 32))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "detector.json",
        "weights.safetensors",
    ]


@pytest.mark.parametrize("name", ["cnndetection", "distildire", "frequency", "npr"])
def test_detectors_that_learn_find_up_sampling(name, upsampled, settings):
    torch.manual_seed(0)
    images, labels = upsampled
    train = torch.arange(120) % 3 != 0
    made = create(name, **settings[name])
    made.learn(images[train], labels[train], generator=torch.Generator().manual_seed(0))
    reached = auroc(labels[~train].numpy(), made.scores(images[~train]).numpy())
    assert reached > 0.95, reached


def test_answers_need_a_calibration(upsampled):
    with pytest.raises(DetectorError, match="not calibrated"):
        create("frequency").predict_proba(upsampled[0])


def test_what_is_no_detector_takes_one_line(tmp_path, upsampled):
    with pytest.raises(DetectorError, match="unknown detector 'clair'; available: clip, cnndetection, "):
        create("clair")
    with pytest.raises(DetectorError, match="cannot be made with"):
        create("frequency", depth=3)
    with pytest.raises(DetectorError, match="holds no detector"):
        load(tmp_path)
    made = create("frequency")
    made.save(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DetectorError, match="damaged"):
        load(tmp_path)
    made.save(tmp_path)
    (tmp_path / "detector.json").write_text("{}")
    with pytest.raises(DetectorError, match="damaged"):
        load(tmp_path)
    with pytest.raises(DetectorError, match="no heatmap"):
        made.heatmap(upsampled[0][:1])


def test_the_frequency_detector_is_scikit_learns_logistic_regression(upsampled):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    images, labels = upsampled
    features = StandardScaler().fit_transform(block_statistics(images).double().numpy())
    expected = LogisticRegression(max_iter=1000).fit(features, labels).decision_function(features)
    made = create("frequency")
    made.learn(images, labels)
    np.testing.assert_allclose(made.scores(images).numpy(), expected, atol=2e-3)


def test_an_explanation_names_what_speaks_loudest(upsampled):
    images, labels = upsampled
    made = create("frequency")
    made.learn(images, labels)
    told = made.explain(images[-1:])
    assert len(told) == 3
    assert all(" of 8: " in each or "in use: " in each for each in told)
    assert any(each.endswith("towards generated") for each in told)


def test_neighbour_residual_equals_a_loop():
    images = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 3, 4, 6)
    for row in range(4):
        for column in range(6):
            expected[..., row, column] = images[..., row, column] - images[..., row // 2 * 2, column // 2 * 2]
    torch.testing.assert_close(neighbour_residual(images), expected)
    doubled = interpolate(torch.rand(1, 3, 4, 4), scale_factor=2, mode="nearest")
    assert neighbour_residual(doubled).abs().max() == 0


def test_npr_says_when_its_training_fails(upsampled):
    made = NprDetector(blocks=(1, 1), epochs=1)
    with pytest.raises(DetectorError, match="not finite"):
        made.learn(upsampled[0] * float("nan"), upsampled[1])


class Coarse(PixelSpace):
    """An autoencoder that gives back pictures of two by two equal pixels exactly, and no others."""

    has_denoiser = False

    def __init__(self, factor: int = 2, name: str = "coarse"):
        super().__init__(
            NoiseSchedule.linear(),
            prediction="epsilon",
            name=name,
            multiple=8,
            latent_channels=3,
            comfortable=32,
        )
        self.kept = torch.nn.Parameter(torch.ones(1) * factor)
        self.factor = factor
        self.freeze()

    @property
    def denoiser(self):
        raise TypeError

    def predict(self, z_t, t, condition=None):
        raise TypeError

    def condition(self, prompts):
        raise TypeError

    def encode(self, images):
        return torch.nn.functional.avg_pool2d(super().encode(images), self.factor)

    def decode(self, z, *, clamp=True):
        return super().decode(interpolate(z, scale_factor=self.factor, mode="nearest"), clamp=clamp)


def test_what_an_autoencoder_made_it_gives_back(upsampled):
    images, labels = upsampled
    made = ReconstructionDetector(models=[Coarse(4), Coarse(2)])
    assert auroc(labels.numpy(), made.scores(images).numpy()) == 1
    alone = [ReconstructionDetector(models=[Coarse(factor)]).scores(images) for factor in (4, 2)]
    torch.testing.assert_close(made.scores(images), torch.stack(alone).amax(0))


def test_large_pictures_are_given_back_in_tiles_without_seams(draw):
    model = Coarse(2)
    picture = torch.from_numpy(draw(0, 36, 1300)).permute(2, 0, 1)[None] / 255
    padded = torch.nn.functional.pad(picture, (0, 4, 0, 4), mode="reflect")
    whole = model.decode(model.encode(padded))[..., :36, :1300]
    assert (round_trip(model, picture) - whole).abs().max() < 0.51 / 255


def test_pictures_and_their_own_round_trips_are_told_apart_and_equal_sets_are_not(draw):
    model = load_model("builtin", denoiser=False)
    pictures = torch.stack([torch.from_numpy(draw(seed, 64, 64)).permute(2, 0, 1) for seed in range(8)]) / 255
    made = ReconstructionDetector(models=[model])
    sets = torch.cat([pictures, round_trip(model, pictures)])
    labels = np.r_[np.zeros(8, int), np.ones(8, int)]
    assert auroc(labels, made.scores(sets).numpy()) == 1
    assert auroc(labels, made.scores(torch.cat([pictures, pictures])).numpy()) == 0.5


def test_the_heatmap_is_highest_where_a_picture_was_pasted_from_a_model(draw):
    model = Coarse(2)
    picture = torch.from_numpy(draw(0, 42, 50)).permute(2, 0, 1)[None] / 255
    pasted = picture.clone()
    pasted[..., 8:32, 8:32] = round_trip(model, picture)[..., 8:32, 8:32]
    heat = ReconstructionDetector(models=[model]).heatmap(pasted)
    assert heat.shape == (1, 42, 50)
    inside = torch.zeros(42, 50, dtype=torch.bool)
    inside[14:26, 14:26] = True
    outside = torch.zeros(42, 50, dtype=torch.bool)
    outside[:, 40:] = True
    assert heat[0][inside].min() > heat[0][outside].max()


def test_local_distance_ignores_a_shift_of_colour_and_keeps_its_place():
    images = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.5
    assert local_distance(images, images + 0.2).max() < 1e-10
    other = images.clone()
    other[..., 12, 12] += 0.4
    found = local_distance(images, other)[0]
    assert found.argmax() == 12 * 24 + 12
    assert found[:, :2].max() == 0


def test_other_weights_than_those_calibrated_with_are_refused(tmp_path):
    made = create("reconstruction")
    made.save(tmp_path)
    assert load(tmp_path).identity == made.identity
    description = json.loads((tmp_path / "detector.json").read_text())
    description["settings"]["fingerprints"] = ["0" * 12]
    (tmp_path / "detector.json").write_text(json.dumps(description))
    with pytest.raises(DetectorError, match="other weights of 'builtin'"):
        load(tmp_path)
    with pytest.raises(DetectorError, match="one autoencoder or more"):
        create("reconstruction", models=[])


def test_an_estimator_fits_calibrates_and_answers_in_its_own_classes(upsampled):
    images, labels = upsampled
    words = np.array(["a real one", "generated"])[labels.numpy()]
    made = DetectorEstimator().fit(images.numpy(), words)
    assert list(made.classes_) == ["a real one", "generated"]
    assert made.score(images, words) > 0.95
    probabilities, logits = made.predict_proba(images), made.decision_function(images)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(probabilities[:, 1], 1 / (1 + np.exp(-logits)), rtol=1e-4, atol=1e-6)
    assert made.detector_.calibration.real == 15
    assert made.detector_.sides == (32, 32)


def test_scikit_learn_searches_and_cross_validates_it(upsampled):
    images, labels = (each.numpy() for each in upsampled)
    assert (
        cross_val_score(DetectorEstimator(held_out=0.4), images, labels, cv=2, scoring="roc_auc").min() > 0.9
    )
    search = GridSearchCV(DetectorEstimator(), {"held_out": [0.4, 0.5], "random_state": [1]}, cv=2)
    assert search.fit(images, labels).best_score_ > 0.9
    reconstruction = DetectorEstimator(ReconstructionDetector(models=[Coarse(2)]))
    copied = clone(reconstruction).fit(images, labels)
    assert copied.detector_.calibration.real == 60, "what learns nothing is calibrated on everything"
    assert reconstruction.detector.calibration is None


def test_the_same_seed_gives_the_same_estimator(upsampled):
    torch.manual_seed(0)
    detector = NprDetector(**SMALL["npr"])
    fitted = [DetectorEstimator(detector, held_out=0.4).fit(*upsampled) for _ in range(2)]
    np.testing.assert_array_equal(*(each.predict_proba(upsampled[0]) for each in fitted))


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_mixin_order,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learns_checks_of_estimators_without_tables_hold(check):
    check("DetectorEstimator", DetectorEstimator())


def test_scikit_learn_itself_has_no_further_check_for_images():
    """Its other checks feed tables of numbers; it leaves them out by the tag that says so."""
    with pytest.warns(estimator_checks.SkipTestWarning, match="Can't test estimator DetectorEstimator"):
        results = estimator_checks.check_estimator(DetectorEstimator(), on_fail=None)
    assert [each["check_name"] for each in results if each["status"] == "failed"] == []


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(4, 3, 8), [0, 1, 0, 1], r"shape \[n, 3, height, width\]"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [0, 1, 0, 1], "divide bytes by 255"),
        (torch.full((4, 3, 8, 8), 2.0), [0, 1, 0, 1], r"values in \[0, 1\]"),
        (torch.rand(4, 3, 8, 8), [1, 1, 1, 1], "two classes apart; got 1"),
        (torch.rand(4, 3, 8, 8), [0, 1], "4 images and 2 labels"),
        (torch.rand(8, 3, 8, 8), [0, 1] * 4, "ten held-out pictures"),
    ],
)
def test_what_is_no_training_set_takes_one_line(images, labels, message):
    with pytest.raises(ValueError, match=message):
        DetectorEstimator().fit(images, labels)


def test_an_estimator_answers_after_fit_alone(upsampled):
    with pytest.raises(NotFittedError):
        DetectorEstimator().predict(upsampled[0])


def test_clips_features_are_those_of_its_own_preprocessing(settings, generator):
    """Of the middle of a picture, normalised as the processor of transformers does it."""
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    folder = settings["clip"]["model"]
    images = (torch.rand(3, 3, 40, 51, generator=generator) * 255).round() / 255
    processor = CLIPImageProcessorPil(
        do_resize=False, crop_size={"height": 32, "width": 32}, do_convert_rgb=False
    )
    arrays = [each for each in (images * 255).byte().numpy()]
    pixels = processor(arrays, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    with torch.no_grad():
        expected = CLIPVisionModelWithProjection.from_pretrained(folder)(pixel_values=pixels).image_embeds
    made = create("clip", model=folder)
    torch.testing.assert_close(made.statistics(images), expected, atol=1e-5, rtol=1e-4)


def test_small_pictures_are_enlarged_for_clip_and_others_are_cut(generator):
    images = torch.rand(1, 3, 20, 30, generator=generator)
    assert centre(images, 32).shape == (1, 3, 32, 32)
    assert torch.equal(centre(images, 10), images[..., 5:15, 10:20])
    flat = torch.full((1, 3, 7, 9), 0.25)
    torch.testing.assert_close(centre(flat, 32), torch.full((1, 3, 32, 32), 0.25))


def test_a_clip_model_that_is_none_takes_one_line(tmp_path, settings):
    with pytest.raises(DetectorError, match="holds no CLIP image encoder in safetensors"):
        create("clip", model=str(tmp_path))
    with pytest.raises(DetectorError, match="other weights of"):
        create("clip", **settings["clip"], fingerprints=["0" * 12])
