"""A detector from folders to a calibrated answer, and the table that sets detectors side by side."""

import json

import numpy as np
import pytest
import torch

from detect.audit import audit
from detect.detector import load
from detect.equalise import Equaliser
from detect.judging import Survey
from detect.layouts import LayoutError, read_layout
from experiments import detection_table
from experiments.__main__ import main
from experiments.detection_data import DetectionPictures, EqualisedPictures
from experiments.detection_table import HANDLINGS
from imaging.transforms import resize

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own

CONFIGS = "experiments/configs"
NARROW = "{blocks: [1, 1], width: 8, bottleneck: false, small: true}"


@pytest.fixture
def doubled(draw):
    """Pictures that were enlarged twice, as generators do in their last layers."""
    return lambda number: (".png", draw(number, 16, 16).repeat(2, 0).repeat(2, 1), {})


@pytest.fixture
def folder(planted, draw, doubled):
    return planted(lambda number: (".png", draw(number, 32, 32), {}), doubled, count=40)


def fit(config, folder, out, *more):
    # a folder of its own: the configurations keep checkpoints and logs where they are run
    options = ["--data.root", str(folder), "--data.level", "raw", "--data.batch_size", "16"]
    options += ["--data.held_out", "0.4", "--model.out", str(out), "--trainer.default_root_dir", str(out)]
    options += ["--trainer.logger", "false", "--trainer.callbacks", "null", "--model.warmup_steps", "1"]
    main(["fit", "--config", f"{CONFIGS}/{config}.yaml", *options, *more])


def small(*more):
    return ("--model.detector.init_args.network", NARROW, *more)


def test_what_is_trained_answers_and_says_what_it_was_judged_on(folder, tmp_path, capsys):
    more = ["--trainer.max_epochs", "25", "--model.detector.init_args.learning_rate", "3e-3"]
    fit("cnndetection", folder, tmp_path / "kept", *small(*more), "--model.detector.probability", "0")
    told = capsys.readouterr()
    assert "cnndetection on 40 real and 40 generated pictures, raw: AUROC" in told.out
    assert "the spectrum alone reaches" in told.out
    detector = load(tmp_path / "kept")
    assert (detector.sides, detector.equaliser.level) == ((32, 32), "raw")
    assert detector.trained_on.endswith("pictures of set")
    judged = json.loads((tmp_path / "kept/judged.json").read_text())
    assert (judged["real"], judged["generated"]) == (40, 40)
    assert judged["auroc"] > 0.9
    (audited,) = json.loads((tmp_path / "kept/audit.json").read_text())
    assert audited["levels"][0]["level"] == "raw"
    # the figure is that of the files, read by another road
    surveyed = Survey.of(read_layout(folder))
    test = [number for number, look in enumerate(surveyed.looks) if look.sample.split == "test"]
    pictures = EqualisedPictures(surveyed, test, Equaliser(level="raw"))
    probabilities = detector.predict_proba(pictures.images())[:, 1].numpy()
    labels = pictures.labels.numpy()
    above = (probabilities[labels == 1][:, None] > probabilities[labels == 0]).mean()
    ties = (probabilities[labels == 1][:, None] == probabilities[labels == 0]).mean()
    assert judged["auroc"] == pytest.approx(above + ties / 2)


def test_distildire_is_taught_by_a_trained_dire(folder, tmp_path, small_prior, monkeypatch):
    from detect import distildire

    priors = {"prior": small_prior(16, ["cat"])}
    monkeypatch.setattr(distildire, "load", lambda name, **more: priors[name])
    quick = small("--model.detector.init_args.model", "prior", "--model.maps", str(tmp_path / "maps"))
    quick += ("--trainer.max_epochs", "12", "--model.detector.init_args.learning_rate", "3e-3")
    fit("dire", folder, tmp_path / "dire", *quick)
    assert (tmp_path / "maps/dire/manifest.json").exists()
    taught = ("--model.teacher", str(tmp_path / "dire"), "--model.distillation", "0.5")
    fit("distildire", folder, tmp_path / "distil", *quick, *taught)
    assert (tmp_path / "maps/noise/manifest.json").exists()
    assert load(tmp_path / "distil").kind == "distildire"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.teacher", "nowhere"], "'nowhere' holds no detector"),
        (
            ["--model.teacher", "detect/builtin"],
            "a dire detector teaches a distildire one; detect/builtin is",
        ),
        (["--data.root", "nowhere"], "'nowhere' is no folder"),
        (["--model.detector.init_args.learning_rate", "1e30"], "not finite: lower the learning rate"),
    ],
)
def test_what_cannot_be_trained_takes_one_line(folder, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stopped:
        fit("cnndetection", folder, tmp_path / "kept", *small("--trainer.max_epochs", "3"), *more)
    assert stopped.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last
    assert last.startswith("fit: ")


def test_pictures_of_several_sizes_are_brought_to_one(planted, draw):
    def sized(number):
        return ".png", draw(number, 40 + number % 9, 44), {}

    root = planted(sized, sized, count=20)
    with pytest.raises(ValueError, match=r"sides of 40 to 48 px: choose the level codec\+size-equalised"):
        DetectionPictures(str(root), level="raw").setup("fit")
    made = DetectionPictures(str(root), level="codec+size-equalised", side=32, held_out=0.5)
    made.setup("fit")
    assert made.learn.images().shape[1:] == (3, 32, 32)
    assert made.equaliser.widest == 40
    fewer = DetectionPictures(str(root), level="codec+size-equalised", side=45, held_out=0.5)
    with pytest.raises(ValueError, match="choose a smaller side"):
        fewer.setup("fit")


def test_parts_share_no_picture_and_a_limit_keeps_both_kinds(folder):
    made = DetectionPictures(str(folder), level="raw", limit=20)
    made.setup("fit")
    parts = [made.learn, made.calibrate, made.judge]
    assert len(set().union(*(part._paths for part in parts))) == sum(len(part) for part in parts)
    assert len(made.learn) == 20
    assert made.learn.labels.sum() == 10


def test_a_survey_is_audited_as_its_folder_is(folder):
    pictures = read_layout(folder)
    assert audit(Survey.of(pictures), levels=["raw"]) == audit(pictures, levels=["raw"])
    for path in sorted((folder / "train/real").iterdir()) + sorted((folder / "test/real").iterdir()):
        path.unlink()
    with pytest.raises(LayoutError, match="10 pictures of each kind are needed; 0 real ones can be read"):
        Survey.of(read_layout(folder))


# ---- the table


def test_rows_of_the_table_are_the_detectors_on_handled_files(folder, tmp_path, capsys):
    out = tmp_path / "table"
    options = ["--detector", "spectrum=detect/builtin", "--data", str(folder), "--other", f"same={folder}"]
    options += ["--level", "raw", "--handling", "none", "half", "--out", str(out)]
    assert detection_table.main(options) == 0
    told = capsys.readouterr().out
    assert "everything about the files reaches AUROC" in told
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(row["pictures"].rpartition(" ")[0], row["handling"]) for row in rows] == [
        *(("its own", handling) for handling in ("none", "half")),
        *(("same", handling) for handling in ("none", "half")),
    ]
    assert [row["real"] for row in rows] == [40, 40, 80, 80]
    detector = load("detect/builtin")
    surveyed = Survey.of(read_layout(folder))
    test = [number for number, look in enumerate(surveyed.looks) if look.sample.split == "test"]
    pictures = EqualisedPictures(surveyed, test, Equaliser(level="raw"))
    handled = (resize(pictures.images(), 0.5).clamp(0, 1) * 255).round() / 255
    called = detector.predict_proba(handled)[:, 1].numpy() >= 0.5
    assert rows[1]["real_right"] == pytest.approx(1 - called[pictures.labels == 0].mean())
    assert rows[1]["generated_right"] == pytest.approx(called[pictures.labels == 1].mean())
    # a second run measures nothing again
    assert detection_table.main(options) == 0
    assert len((out / "rows.jsonl").read_text().splitlines()) == 4
    assert (out / "table.md").read_text().count("\n") == 6
    assert (out / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_every_generator_of_a_set_has_a_row_beside_all_real_pictures(draw, save, tmp_path):
    for split, first in (("train", 0), ("test", 100)):
        for number in range(24):
            place = f"{split}/real/{number}.png"
            save(tmp_path / place, draw(first + number, 32, 32))
            made = draw(500 + first + number, 16, 16).repeat(2, 0).repeat(2, 1)
            save(tmp_path / split / "generated" / ("one", "two")[number % 2] / f"{number}.png", made)
    out = tmp_path / "table"
    options = ["--detector", "spectrum=detect/builtin", "--data", str(tmp_path), "--level", "raw"]
    assert detection_table.main([*options, "--held-out", "0.5", "--handling", "none", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    names = [row["pictures"].rpartition(" ")[0] for row in rows]
    assert names == ["its own", "its own, one", "its own, two"]
    assert [(row["real"], row["generated"]) for row in rows] == [(24, 24), (24, 12), (24, 12)]


@pytest.mark.parametrize(
    ("detectors", "message"),
    [
        (["builtin"], "expected NAME=FOLDER; got 'builtin'"),
        (["a=nowhere"], "'nowhere' holds no detector"),
    ],
)
def test_a_table_of_no_detectors_takes_one_line(folder, tmp_path, capsys, detectors, message):
    options = ["--detector", *detectors, "--data", str(folder), "--out", str(tmp_path / "table")]
    assert detection_table.main(options) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"detection-table: {message}")
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize("name", HANDLINGS)
def test_handling_keeps_size_and_treats_each_picture_alone(name, draw):
    pictures = np.stack([draw(seed, 32, 32) for seed in range(3)])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    handled = HANDLINGS[name](images)
    assert handled.shape == images.shape
    torch.testing.assert_close(HANDLINGS[name](images[1:2]), handled[1:2], atol=1e-5, rtol=1e-5)
    assert torch.equal(handled, images) == (name == "none")


def test_the_bench_times_every_detector(capsys, small_prior, monkeypatch):
    from detect import distildire
    from experiments.bench import detect as bench

    monkeypatch.setattr(distildire, "load", lambda name: small_prior(16, ["cat"]))
    assert bench.main(["--side", "16", "--batch", "2", "--repeats", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| dire", "| distildire", "| cnndetection"]
    assert rows[0].endswith("| 1.0x | 1.0x |")


def test_a_detector_that_needs_no_lightning_is_fitted_calibrated_and_judged(folder, tmp_path, capsys):
    from experiments import fit_detector

    out = tmp_path / "kept"
    options = ["--level", "raw", "--held-out", "0.4", "--set", "regularisation=0.5"]
    assert fit_detector.main(["frequency", str(folder), str(out), *options]) == 0
    told = capsys.readouterr().out
    assert "frequency on 40 real and 40 generated pictures, raw: AUROC" in told
    assert "bytes per pixel" in told, "what the files give away stands beside it"
    detector = load(out)
    assert detector.settings() == {"regularisation": 0.5}
    assert detector.calibrated().real + detector.calibrated().generated < 40
    assert {path.name for path in out.iterdir()} >= {"audit.json", "judged.json", "detector.json"}
    # what learns nothing is calibrated alone, and takes pictures of any size
    options = ["--level", "raw", "--held-out", "0.4"]
    assert fit_detector.main(["reconstruction", str(folder), str(tmp_path / "other"), *options]) in (0, 1)
    assert load(tmp_path / "other").sides is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "depth"], "expected NAME=VALUE; got 'depth'"),
        (["--set", "depth=3"], "frequency cannot be made with {'depth': 3}"),
        (["--side", "99", "--level", "codec+size-equalised"], "choose a smaller side"),
    ],
)
def test_what_cannot_be_fitted_takes_one_line(folder, tmp_path, capsys, more, message):
    from experiments import fit_detector

    assert fit_detector.main(["frequency", str(folder), str(tmp_path / "kept"), *more]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fit-detector: ")
    assert message in last
    assert not (tmp_path / "kept").exists()
