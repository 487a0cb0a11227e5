"""The frequency baseline from files to figures, on parts that share nothing."""

import shutil

import pytest
import torch

from detect.baseline import fit_frequency
from detect.detector import load
from detect.equalise import Equaliser
from detect.facts import examine
from detect.layouts import LayoutError, read_layout
from experiments.audit import main


@pytest.fixture
def doubled(draw):
    """Pictures of which the generated ones were enlarged twice, as generators do in their last layers."""

    def generated(number):
        small = draw(number, 24, 24)
        return ".png", small.repeat(2, 0).repeat(2, 1), {}

    return generated


def test_the_baseline_finds_enlarged_pictures_that_it_did_not_see(planted, png, doubled):
    root = planted(png, doubled, count=60)
    detector, card = fit_frequency(read_layout(root), equaliser=Equaliser(level="raw"), data="drawn")
    assert (card.real, card.generated) == (60, 60)
    assert card.auroc > 0.95
    assert card.balanced_accuracy > 0.85
    assert detector.calibration.real + detector.calibration.generated < 60
    assert (detector.sides, detector.trained_on) == ((48, 48), "drawn")


def test_copies_of_training_pictures_are_not_judged_on(planted, png, doubled):
    root = planted(png, doubled, count=60)
    for number in range(9):
        shutil.copy(root / f"train/real/{number:03d}.png", root / f"test/real/copy{number}.png")
    _, card = fit_frequency(read_layout(root), equaliser=Equaliser(level="raw"), data="drawn")
    assert card.real == 60


def test_a_set_without_splits_is_split_by_groups(tmp_path, save, draw, doubled):
    for number in range(100):
        save(tmp_path / f"real/{number}.png", draw(number))
        save(tmp_path / f"generated/{number}.png", doubled(500 + number)[1])
    _, card = fit_frequency(read_layout(tmp_path), equaliser=Equaliser(level="raw"), data="drawn")
    assert 30 < card.real + card.generated < 90
    assert card.auroc > 0.95


def test_the_kept_detector_scores_files_as_it_was_judged(planted, png, doubled, tmp_path, capsys):
    root = planted(png, doubled, count=60)
    main([str(root), "--levels", "raw", "--keep", str(tmp_path / "kept"), "--about", "drawn pictures"])
    told = capsys.readouterr().out
    assert "the frequency baseline on codec-equalised pictures" in told
    detector = load(tmp_path / "kept")
    assert (detector.trained_on, detector.equaliser.level) == ("drawn pictures", "codec-equalised")
    _, card = fit_frequency(read_layout(root), equaliser=Equaliser(), data="drawn pictures")
    assert f"{'AUROC':22} {card.auroc:.4g}" in told
    logits = {}
    for label in ("real", "generated"):
        files = sorted((root / "test" / label).glob("*.png"))
        pixels = [detector.equaliser(examine(path).images).pixels[None] / 255 for path in files]
        logits[label] = torch.cat([detector.scores(each) for each in pixels]).numpy()
    above = (logits["generated"][:, None] > logits["real"][None]).mean()
    assert above == pytest.approx(card.auroc, abs=1e-6)


def test_too_few_pictures_take_one_line(planted, png, tmp_path):
    root = planted(png, png, count=6)
    with pytest.raises(ValueError, match="ten held-out pictures"):
        fit_frequency(read_layout(root), equaliser=Equaliser(), data="drawn")
    shutil.rmtree(root / "train/real")
    shutil.rmtree(root / "test/real")
    with pytest.raises(LayoutError, match="0 real ones can be read"):
        fit_frequency(read_layout(root), equaliser=Equaliser(), data="drawn")
