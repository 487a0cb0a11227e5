"""The audit finds what is planted, names it, and passes a set in which nothing is."""

import json
import shutil

import numpy as np
import pytest

from detect.audit import audit
from detect.facts import Facts
from detect.layouts import read_layout
from detect.leaks import columns_of_facts
from experiments.audit import main


def level_of(found, name):
    return next(level for level in found.levels if level.level == name)


def test_a_clean_set_passes(planted, capsys, png):
    root = planted(png, png)
    assert main([str(root)]) == 0, capsys.readouterr().out
    told = capsys.readouterr().out
    assert "the set passes" in told
    assert "test        30 real, 30 generated" in told


def test_real_jpegs_beside_generated_pngs_are_found_until_all_are_recompressed(planted, capsys, png, jpg):
    root = planted(jpg, png)
    assert main([str(root), "--report", str(root / "audit.json")]) == 1
    assert "raw: format alone reaches AUROC 1.000" in capsys.readouterr().out
    (report,) = json.loads((root / "audit.json").read_text())
    raw, equalised = report["levels"]
    metadata = [
        next(leak for leak in level["leaks"] if leak["what"] == "metadata") for level in (raw, equalised)
    ]
    assert metadata[0]["auroc"] == 1
    assert metadata[1]["auroc"] < 0.65
    assert "spectrum" in raw


def test_two_qualities_of_jpeg_are_told_apart_by_their_tables(planted, jpg):
    root = planted(jpg, lambda number: jpg(number, quality=92))
    raw = level_of(audit(read_layout(root), levels=["raw"]), "raw")
    assert "quantisation" in raw.contaminated
    assert "format" not in raw.contaminated


def test_a_size_of_the_generator_is_found_until_sizes_are_equal(planted, png):
    def real(number):
        height, width = 64 + number % 40, 64 + number * 7 % 40
        return png(number, height=height, width=width)

    root = planted(real, lambda number: png(number, height=80, width=80))
    levels = ("raw", "codec-equalised", "codec+size-equalised")
    found = audit(read_layout(root), levels=levels, side=48)
    assert "size" in level_of(found, "raw").contaminated
    assert "size" in level_of(found, "codec-equalised").contaminated
    assert "size" not in level_of(found, "codec+size-equalised").contaminated


def test_exif_of_real_pictures_is_found(planted, draw, png):
    from PIL import Image

    exif = Image.Exif()
    exif[0x010F] = "a camera"
    root = planted(lambda number: (".png", draw(number), {"exif": exif}), png)
    assert "EXIF and profile" in level_of(audit(read_layout(root), levels=["raw"]), "raw").contaminated


def test_copies_across_splits_and_labels_are_found_and_not_judged_on(planted, png):
    root = planted(png, png)
    for number in range(4):
        shutil.copy(root / f"train/generated/{number:03d}.png", root / f"test/generated/copy{number}.png")
    shutil.copy(root / "train/real/009.png", root / "train/generated/stray.png")
    found = audit(read_layout(root), levels=["raw"])
    assert (found.exact, found.exact_across_splits, found.across_labels) == (5, 4, 1)
    assert found.judged == (30, 30)
    assert any("5 pictures are copies, 4 of them across splits" in each for each in found.findings)


def test_recompressed_and_resized_copies_are_near_duplicates(planted, draw, save, png):
    root = planted(png, png)
    save(root / "test/real/again.jpg", draw(3), quality=60)
    small = np.asarray(draw(5)).repeat(2, 0).repeat(2, 1)
    save(root / "test/real/larger.png", small)
    found = audit(read_layout(root), levels=["raw"])
    assert (found.exact, found.near, found.near_across_splits) == (0, 2, 2)
    assert found.crossing_groups == 2
    assert found.judged == (30, 30)


def test_a_stated_group_may_not_cross_splits(planted, png):
    root = planted(png, png)
    (root / "groups.csv").write_text("path,group\ntrain/real/000.png,one\ntest/generated/000.png,one\n")
    found = audit(read_layout(root), levels=["raw"])
    assert found.crossing_groups == 1
    assert found.groups == 119
    assert found.judged == (30, 29)
    assert any("source groups lie in several splits" in each for each in found.findings)


def test_a_set_without_splits_is_judged_in_folds(tmp_path, draw, save):
    for number in range(25):
        save(tmp_path / f"real/{number}.jpg", draw(number))
        save(tmp_path / f"generated/flux/{number}.png", draw(100 + number))
    found = audit(read_layout(tmp_path), levels=["raw"])
    assert found.judged == (25, 25)
    assert found.sources == {"flux": 25}
    assert "format" in found.levels[0].contaminated


def test_broken_files_are_named_and_the_rest_goes_on(planted, capsys, png):
    root = planted(png, png)
    (root / "train/real/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert main([str(root), "--levels", "raw"]) == 0
    told = capsys.readouterr().out
    assert "unreadable" in told
    assert "broken.png" in told


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no pictures"),
        (["cats/a.png"], "has no layout that is known"),
        ([f"real/{number}.png" for number in range(12)], "0 generated ones can be read"),
    ],
)
def test_folders_that_are_no_set_take_one_line(tmp_path, names, message, capsys, draw, save):
    for number, name in enumerate(names):
        save(tmp_path / name, draw(number))
    assert main([str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_side_that_few_pictures_have_is_refused(planted, png):
    root = planted(png, png, count=12)
    with pytest.raises(ValueError, match="choose a smaller side"):
        audit(read_layout(root), levels=["codec+size-equalised"], side=64)


def test_columns_name_the_most_frequent_values_alone():
    facts = [Facts("PNG", 64, 32 + number, 100) for number in range(20)]
    columns = columns_of_facts(facts)
    assert columns["format"].shape == (20, 1)
    assert columns["size"].shape == (20, 4 + 8)
    np.testing.assert_allclose(columns["size"][:, 3], np.log([64 / (32 + number) for number in range(20)]))


def test_the_same_pictures_in_two_formats_differ_in_no_fact_after_recompression(tmp_path, draw, save):
    for number in range(40):
        save(tmp_path / f"real/{number}.jpg", draw(number), quality=60)
        save(tmp_path / f"generated/{number}.png", draw(number))
    found = audit(read_layout(tmp_path))
    assert (found.groups, found.across_labels) == (40, 40), "a copy is of the group of its parent"
    raw, equalised = found.levels
    assert raw.leaks[-1].auroc == 1
    assert equalised.leaks[-1].auroc == pytest.approx(0.5, abs=0.1)
    # what is left of the first compression in the pixels is another matter, and is not claimed to be gone
    assert equalised.spectrum.auroc < raw.spectrum.auroc
